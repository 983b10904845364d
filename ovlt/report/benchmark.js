"use strict";
// Show the questions of one category or verdict; without this script all are shown.
const filter = document.getElementById("filter");
const articles = [...document.querySelectorAll("article")];
const apply = () => {
  const label = filter.elements.label.value;
  const verdict = filter.elements.verdict.value;
  let shown = 0;
  for (const article of articles) {
    const labels = JSON.parse(article.dataset.labels);
    const verdicts = article.dataset.verdicts.split(" ");
    article.hidden = (label && !labels.includes(label)) || (verdict && !verdicts.includes(verdict));
    if (!article.hidden) shown += 1;
  }
  filter.querySelector("output").textContent = shown + " of " + articles.length;
};
filter.hidden = false;
filter.addEventListener("change", apply);
filter.addEventListener("submit", (event) => event.preventDefault());
apply();
