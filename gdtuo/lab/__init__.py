"""What experiments need around the optimizers: data. Imported on request; the core knows nothing of it."""
