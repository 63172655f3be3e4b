#!/bin/bash
# shellcheck disable=SC2154  # JOB, IMAGE and the rest are set by the lines before this file
# What an EC2 instance does with its one job: data in, `docker run IMAGE train`, artifact out, and then its own end.
# The lines that set JOB, IMAGE and the rest are put before this one (deploy/ec2.py).
set -uo pipefail

# Whatever happens below, even nothing: the instance ends itself, and a shut-down instance is a terminated one.
shutdown -h "+$((MAX_MINUTES + 30))"

export AWS_DEFAULT_REGION=$REGION
readonly ML=$WORK/ml STREAM=$JOB
stage=starting fetched=''

note() {
  printf '%s\n' "$*"
  local message=${*//\\/\\\\}
  message=${message//\"/\\\"}
  message=${message//$'\n'/ }
  # A log that cannot be written to is no reason to end a training.
  aws logs put-log-events --log-group-name "$LOG_GROUP" --log-stream-name "$STREAM/host" \
    --log-events "[{\"timestamp\":$(date +%s%3N),\"message\":\"${message:0:4000}\"}]" >/dev/null || true
}

# The same layout that SageMaker leaves: JOB/output/{model.tar.gz,output.tar.gz,failure}.
finish() {
  local code=$?
  trap - EXIT TERM
  set +e # what cannot be saved is no reason to run on
  if ((code)); then
    [[ -s $ML/output/failure ]] || printf 'failed while %s (exit code %s)' "$stage" "$code" >"$ML/output/failure"
    note "FAILED: $(head -c 1024 "$ML/output/failure")"
    aws s3 cp --only-show-errors "$ML/output/failure" "$OUTPUT/failure"
  else
    note "COMPLETED: $OUTPUT/model.tar.gz"
  fi
  save_checkpoints
  shutdown -h now
}

pack() {
  [[ -n $(ls -A "$1") ]] || return 0
  tar -C "$1" -czf "$WORK/$2" . && aws s3 cp --only-show-errors "$WORK/$2" "$OUTPUT/$2"
}

# As SageMaker mirrors them: what training has rotated away goes from S3 too. Not before what lies there was fetched: a
# folder that is still empty would take all of it away.
save_checkpoints() {
  [[ -z $fetched ]] || aws s3 sync --only-show-errors "$ML/checkpoints" "$CHECKPOINTS" --delete
}

# A spot instance is taken away without a word to us: what lies in S3 is at most a minute old.
keep_checkpoints() {
  while sleep 60; do save_checkpoints; done
}

# The machine image stands on Amazon Linux's minimal one: docker is there, the aws command and perhaps tar are not
# (its recipe: https://github.com/aws/amazon-ecs-ami, al2023.pkr.hcl).
install_tools() {
  local missing=()
  command -v aws >/dev/null || missing+=(awscli-2)
  command -v docker >/dev/null || missing+=(docker)
  command -v tar >/dev/null || missing+=(tar)
  command -v gzip >/dev/null || missing+=(gzip)
  ((${#missing[@]} == 0)) || dnf install -y "${missing[@]}"
  docker info >/dev/null 2>&1 || systemctl start docker
}

main() {
  mkdir -p "$ML"/{input/config,input/data,model,checkpoints,output/data}
  trap finish EXIT
  trap 'exit 143' TERM
  set -e

  stage='installing tools'
  install_tools
  aws logs create-log-stream --log-group-name "$LOG_GROUP" --log-stream-name "$STREAM/host" || true

  stage="pulling $IMAGE"
  note "$stage"
  aws ecr get-login-password | docker login --username AWS --password-stdin "${IMAGE%%/*}"
  docker pull --quiet "$IMAGE"

  stage='fetching data'
  note "$stage"
  local name
  for name in "${!CHANNELS[@]}"; do
    aws s3 sync --only-show-errors "${CHANNELS[$name]}" "$ML/input/data/$name"
  done
  aws s3 sync --only-show-errors "$CHECKPOINTS" "$ML/checkpoints"
  fetched=yes
  printf '%s' "$HYPERPARAMETERS" >"$ML/input/config/hyperparameters.json"

  # No network inside, as SageMaker's isolation has it: neither the internet nor the instance's credentials.
  stage='training'
  note "$stage"
  keep_checkpoints &
  # As SageMaker ends a job at its time-out: SIGTERM, two minutes to save the model, SIGKILL.
  timeout --preserve-status --kill-after=120 "$((MAX_MINUTES * 60))" \
    docker run --rm --network none --shm-size "$SHM_SIZE" "${DOCKER_OPTIONS[@]}" --volume "$ML:/opt/ml" "$IMAGE" train

  stage='saving the model'
  note "$stage"
  pack "$ML/model" model.tar.gz
  pack "$ML/output/data" output.tar.gz
}

main
