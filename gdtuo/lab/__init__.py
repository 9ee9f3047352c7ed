"""What experiments need around the optimizers: tasks, ablations, data, pictures. Imported on request; the core knows nothing of it."""
