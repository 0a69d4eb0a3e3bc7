#!/bin/bash
# hrzs finetune on several machines, stopped in good order before the time is up, and queued again:
#   sbatch docs/slurm/finetune.sh --data imagenet --model ViT-B-32 --pretrained openai -o runs/hierarchical
#SBATCH --job-name=hrzs-finetune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=96
#SBATCH --time=12:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
# How long torchrun waits for the step in progress, once it was told to stop.
export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=240

srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" --nproc-per-node "${SLURM_GPUS_ON_NODE:-gpu}" \
  --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id "$SLURM_JOB_ID" --max-restarts 3 \
  -m hrzs finetune "$@" --resume &
step=$!

stopped=
trap 'stopped=1; kill -TERM "$step"' USR1
status=0
wait "$step" || status=$?
if [ -n "$stopped" ]; then
  wait "$step" || status=$?
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
