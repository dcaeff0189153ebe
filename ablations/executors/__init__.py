"""Where jobs run: in this process, in processes of this machine, or on Slurm; and their states."""
