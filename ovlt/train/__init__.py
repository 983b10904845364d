"""One optimizer step: packing, advantage, loss, update, checkpoint."""
