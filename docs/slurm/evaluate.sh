#!/bin/bash
# hrzs eval in an array of jobs, one GPU each, then the merge:
#   job=$(sbatch --parsable docs/slurm/evaluate.sh --model runs/hierarchical --data imagenet --json out.json)
#   sbatch --dependency=afterok:"$job" --wrap 'hrzs eval --model runs/hierarchical --data imagenet --json out.json --merge'
# A job that has failed or was pre-empted is run again by its number: sbatch --array=3 docs/slurm/evaluate.sh …
#SBATCH --job-name=hrzs-eval
#SBATCH --array=1-8
#SBATCH --gpus=1
#SBATCH --cpus-per-task=12
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

exec srun hrzs eval "$@" --shard "$SLURM_ARRAY_TASK_ID/${SHARDS:-8}"
