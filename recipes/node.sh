#!/usr/bin/env bash
# From a bare node of eight GPUs to the final table, by one command:
#
#     recipes/node.sh [RECIPE.toml] [--smoke] [--dry-run] [--until=STAGE] [--table.key=value ...]
#
#     recipes/node.sh              OpenVLThinker v1.2: recipes/openvlthinker-v2.toml
#     recipes/node.sh --smoke      the same steps and recipe with a tiny model, two ranks on a CPU
#     recipes/node.sh --dry-run    what would be done, and what is missing; changes nothing
#
# Every step looks first at what is there: killed at any moment, the same command goes on.
# Variables: VENV and PYTHON3 as for make; PYTHON=/path/to/python has every package already (nothing is
# installed then); HARDWARE=h200x8 where the GPUs are not known by name; ANYWAY=1 goes on although the
# node is too small.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

GPUS=8
DRIVER=580         # CUDA 13.0, which torch brings along (requirements/lock-gpu.txt), asks for it
HOST_GIB=192       # `ovlt.plan`: the sleeping engines' weights take 124; the rest is the ranks'
DISK_GIB=2000      # models 80, data 50; 9 stages, of which GRPO keeps two checkpoints (92 GiB) and two models (31)
SUMS=data/checksums.sha256
REVISIONS=data/revisions.txt

recipe='' smoke='' dry='' until=''
overrides=()
for word in "$@"; do
  case $word in
    --smoke) smoke=--smoke ;;
    --dry-run) dry=--dry-run ;;
    --until=?*) until=$word ;;
    --*.*=*) overrides+=("$word") ;;
    *.toml) recipe=$word ;;
    -h | --help) sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "$0"; exit 0 ;;
    *) echo "recipes/node.sh: cannot read '$word'; see recipes/node.sh --help" >&2; exit 2 ;;
  esac
done
recipe=${recipe:-recipes/openvlthinker-v2.toml}
[ -f "$recipe" ] || { echo "recipes/node.sh: no recipe at $recipe" >&2; exit 2; }
name=$(basename "$recipe" .toml)
python=${PYTHON:-${VENV:-.venv}/bin/python}

say() { printf '\n== %s\n' "$*"; }
fail() { printf 'recipes/node.sh: %s\n' "$*" >&2; exit 1; }
# Run a command; in a dry run, print it.
go() { if [ -n "$dry" ]; then echo "would run: $*"; else "$@"; fi; }
# What a dry run only tells ends a real one.
lack() { if [ -n "$dry" ]; then echo "MISSING: $*"; else fail "$*"; fi; }

# --- the node ------------------------------------------------------------------------------------

small() { # small WHAT HAS NEEDS UNIT: the node has too little of it
  if [ -n "$smoke$dry${ANYWAY:-}" ]; then
    echo "$1: $2 $4; the real run needs $3"
  else
    fail "$1: $2 $4, and this recipe needs $3; ANYWAY=1 goes on all the same"
  fi
}
measure() { # measure WHAT HAS NEEDS UNIT
  if [ "$2" -ge "$3" ]; then echo "$1: $2 $4"; else small "$@"; fi
}

hardware=${HARDWARE:-}
check_node() {
  local chips first
  chips=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null) || chips=''
  measure GPUs "$(grep -c . <<<"$chips" || true)" "$GPUS" "of one kind"
  if [ -n "$chips" ]; then
    first=$(head -n 1 <<<"$chips")
    echo "  $first"
    [ "$(sort -u <<<"$chips" | wc -l)" = 1 ] || lack "the GPUs differ: $(sort -u <<<"$chips" | paste -sd,)"
    measure driver "$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | cut -d. -f1 | sort -n | head -n 1)" \
      "$DRIVER" "(major version)"
    case $first in
      *H200*) hardware=${hardware:-h200x$GPUS} ;;
      *H100*) hardware=${hardware:-h100x$GPUS} ;;
      *A100*80G*) hardware=${hardware:-a100-80x$GPUS} ;;
      *A100*) hardware=${hardware:-a100-40x$GPUS} ;;
      *L40S*) hardware=${hardware:-l40sx$GPUS} ;;
    esac
  fi
  measure "host memory" "$(awk '/^MemTotal/ {print int($2 / 1048576)}' /proc/meminfo)" "$HOST_GIB" GiB
  measure "free disk at $PWD" "$(df -Pk . | awk 'NR == 2 {print int($4 / 1048576)}')" "$DISK_GIB" GiB
}

# --- models and data -----------------------------------------------------------------------------

repository() { # the Hugging Face repository of a model folder
  case $1 in
    Qwen2.5-VL-*) echo "Qwen/$1" ;;
    QwQ-32B) echo Qwen/QwQ-32B ;;
    DeepSeek-R1-Distill-Qwen-*) echo "deepseek-ai/$1" ;;
  esac
}

fetch() { # fetch REPOSITORY KIND FOLDER [options]: at the revision of the first time
  local repository=$1 kind=$2 folder=$3 revision
  shift 3
  revision=$(awk -v r="$repository" '$1 == r {print $2}' "$REVISIONS" 2>/dev/null || true)
  # HF_HUB_OFFLINE: the commands below run without the network, this one needs it
  HF_HUB_OFFLINE=0 go "$(dirname "$(command -v "$python")")/hf" download "$repository" --repo-type "$kind" \
    --local-dir "$folder" ${revision:+--revision "$revision"} "$@"
  if [ -z "$revision$dry" ]; then # the hub writes the commit into the first line of each record
    revision=$(find "$folder/.cache" -name '*.metadata' -exec head -qn 1 {} + | sort -u)
    [ "$(wc -w <<<"$revision")" = 1 ] || fail "$folder came from several revisions ($revision): delete it and start again"
    mkdir -p "$(dirname "$REVISIONS")"
    echo "$repository $revision" >>"$REVISIONS"
  fi
}

models() {
  local folder source
  # every "models/..." that the recipe's values (not its comments) and the overrides name
  for folder in $({ sed 's/#.*//' "$recipe" | grep -oE '"models/[^"]+"' | tr -d '"'
    printf '%s\n' "${overrides[@]}" | sed -n 's/^--[^=]*=\(models\/.*\)/\1/p'; } | sort -u); do
    source=$(repository "$(basename "$folder")")
    if [ -f "$folder/.complete" ]; then
      echo "$folder: there"
    elif [ -f "$folder/config.json" ] && [ ! -d "$folder/.cache" ]; then
      echo "$folder: there, put by you"
    elif [ -n "$source" ]; then
      echo "$folder: from $source"
      fetch "$source" model "$folder"
      go touch "$folder/.complete"
    else
      lack "$folder is not there, and where it comes from is not known: put the model there yourself"
    fi
  done
}

sources() { # what the mixtures read
  local mixtures=("recipes/data/$name"/*.toml) path subset include=() wanted=''
  [ -f "${mixtures[0]}" ] || { echo "no mixtures in recipes/data/$name: put the recipe's data files there yourself"; return; }
  while read -r path; do
    case $(basename "$path") in
      LLaVA-OneVision-Data) wanted=$(values subset "${mixtures[@]}") ;;
      *) wanted='' ;;
    esac
    # .complete holds the subsets that were asked for: a mixture may name others since
    if [ -f "$path/.complete" ] && [ -z "$(LC_ALL=C comm -23 <(cat <<<"$wanted") "$path/.complete")" ]; then
      echo "$path: there"
    elif [ -e "$path" ] && [ ! -d "$path/.cache" ]; then
      echo "$path: there, put by you"
    elif [ "$(basename "$path")" = LLaVA-OneVision-Data ]; then
      echo "$path: its subsets from lmms-lab/LLaVA-OneVision-Data"
      include=()
      while read -r subset; do [ -z "$subset" ] || include+=(--include "$subset/*"); done <<<"$wanted"
      fetch lmms-lab/LLaVA-OneVision-Data dataset "$path" "${include[@]}"
      [ -n "$dry" ] || { cat "$path/.complete" 2>/dev/null || true; echo "$wanted"; } |
        LC_ALL=C sort -u -o "$path/.complete"
    elif [ "$(basename "$path")" = MathVista ]; then
      echo "$path: the questions of testmini, which no mixture may hold, from AI4Math/MathVista"
      fetch AI4Math/MathVista dataset "$path" --include "data/testmini*"
      [ -n "$dry" ] || echo >"$path/.complete"
    else
      lack "$path is not there, and where it comes from is not known: put the dataset there yourself"
    fi
  done < <({ values path "${mixtures[@]}"
    sed -n 's/^ *"\(data\/sources\/.*\)",*$/\1/p' "${mixtures[@]}"; } | sort -u)
}

values() { # values KEY FILE...: every value of a key of [[mixture.sources]], once
  sed -n "s/^$1 = \"\(.*\)\".*/\1/p" "${@:2}" | LC_ALL=C sort -u
}

prepare() { # each mixture once; held-out questions first, as the others leave them out
  local mixture
  mixture=recipes/data/$name/held_out.toml
  [ ! -f "$mixture" ] || prepare_one "$mixture"
  for mixture in "recipes/data/$name"/*.toml; do
    [ ! -f "$mixture" ] || [ "$(basename "$mixture")" = held_out.toml ] || prepare_one "$mixture"
  done
}

prepare_one() {
  local mixture=$1 folder
  folder=$(values folder "$mixture")
  if [ -f "$folder.parquet" ]; then
    if [ -d "$folder" ] && ! cmp -s "$mixture" "$folder/mixture.toml"; then
      lack "$folder.parquet was prepared by another $mixture: delete it and $folder to prepare it anew"
    fi
    echo "$folder.parquet: there"
    return
  fi
  go "$python" -m ovlt prepare "$mixture"
  # under the names that the recipe has for them
  if grep -q '^validation = ' "$mixture"; then
    go ln -f "$folder/validation.parquet" "$(dirname "$folder")/validation.parquet"
  fi
  go cp "$mixture" "$folder/mixture.toml"
  go ln -f "$folder/train.parquet" "$folder.parquet"
}

checksums() { # files that are known must be as they were; new ones are written down
  local files new
  files=$(find -L data models -type f ! -path '*/.*' ! -path "$SUMS*" ! -path "$REVISIONS" 2>/dev/null |
    LC_ALL=C sort || true)
  if [ -z "$files" ]; then
    echo "no file in data/ or models/"
    return
  fi
  if [ -f "$SUMS" ]; then
    echo "comparing $(wc -l <"$SUMS") files with $SUMS"
    sha256sum --check --quiet "$SUMS" ||
      lack "the files named above are not those of $SUMS: fetch or prepare them again, or delete their lines if they are meant to differ"
  fi
  new=$(comm -23 <(cat <<<"$files") <(cut -c67- "$SUMS" 2>/dev/null | LC_ALL=C sort))
  [ -n "$new" ] || return 0
  echo "$(wc -l <<<"$new") files that $SUMS does not name yet"
  [ -n "$dry" ] || {
    { cat "$SUMS" 2>/dev/null || true; xargs -d '\n' sha256sum <<<"$new"; } >"$SUMS.new"
    mv "$SUMS.new" "$SUMS"
  }
}

# --- the steps -----------------------------------------------------------------------------------

# A function is read whole before it runs: the file may change during the days that it takes.
main() {
  local run
  say "1 the node"
  check_node

  say "2 the environment"
  if [ -n "${PYTHON:-}" ]; then
    echo "$PYTHON, as it is"
  else
    go make install
  fi
  [ -x "$(command -v "$python")" ] || { lack "$python; the steps below need it"; exit 0; }

  if [ -n "$smoke" ]; then
    say "3 models, data: the stages make their own, in runs/smoke"
  else
    say "3 models"
    models
    say "4 data"
    sources
    prepare
    say "5 checksums"
    checksums
  fi

  say "6 the plan (python -m ovlt.plan; planned, not measured)"
  # of the whole recipe even with --smoke: it loads nothing
  "$python" -m ovlt.plan "$recipe" --hardware="${hardware:-h100x$GPUS}" "${overrides[@]}" || lack "the plan does not fit; see above"

  say "7 the iterations (python -m ovlt.cycle)"
  "$python" -m ovlt.cycle "$recipe" ${smoke:+"$smoke"} ${dry:+"$dry"} ${until:+"$until"} "${overrides[@]}"
  [ -z "$dry" ] || exit 0

  say "8 the report"
  run=$("$python" -c '
import sys
from ovlt.config.command_line import split_words
from ovlt.config.load import load_recipe
paths, overrides, smoke = split_words(sys.argv[1:])
print(load_recipe(paths, overrides, smoke=smoke).folder)
  ' "$recipe" ${smoke:+"$smoke"} "${overrides[@]}")
  "$python" -m ovlt.report "$run"
}

main; exit # on one line, read at once; with && in between, set -e would not count in main
