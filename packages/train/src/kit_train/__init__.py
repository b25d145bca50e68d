"""Parts of a visible training loop: Fabric, schedules, batches, exact resume."""
