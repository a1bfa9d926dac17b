"""Where the runs of a sweep train: in processes of this machine, or as a job array of SLURM."""
