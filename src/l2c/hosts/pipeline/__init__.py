"""diffusers pipelines as hosts: their scheduler is the clock, their own code the sampling loop."""
