"""What experiments need around the optimizers: tasks, ablations, pictures, data. Imported on request, never by the core."""
