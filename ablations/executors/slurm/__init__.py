"""Jobs on Slurm: settings, arrays sent through submitit, what a job does there, and the queue."""
