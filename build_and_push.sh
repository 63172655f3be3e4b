#!/usr/bin/env bash
# Build the image, push it to Amazon ECR under its version, and print its digest URI alone on the last line.
set -euo pipefail

usage() {
  cat >&2 <<'TEXT'
usage: ./build_and_push.sh [--dirty] [TAG]

  TAG            a second tag beside the version: dev, staging, prod and latest may move, any other is immutable
  --dirty        build from a tree with uncommitted changes, whose revision is REVISION-dirty-HASH

environment
  AWS_PROFILE, AWS_REGION   as the aws command reads them
  KENNEL_REPOSITORY         name of the ECR repository (default: kennel)
  KENNEL_KMS_KEY            a KMS key of your own for the repository (default: AWS's AES-256)
  CONTAINER_ENGINE          docker or podman (default: the one that is installed, docker first)
  PLATFORM                  default linux/amd64; linux/arm64 for Graviton
  BASE, TORCH, PRETRAINED…  the settings of container/build.sh

The version is the git revision and each setting that is not the default: REVISION-resnet50-cpu-arm64, for example.
Safe to repeat: a version that is already there is not built again. Progress goes to standard error.
TEXT
  exit "$1"
}

readonly REPOSITORY=${KENNEL_REPOSITORY:-kennel}
export PLATFORM=${PLATFORM:-linux/amd64}
readonly MOVING_TAGS='dev staging prod latest'
readonly LIFECYCLE='{"rules":[{"rulePriority":1,"description":"untagged images only","selection":{"tagStatus":"untagged","countType":"sinceImagePushed","countUnit":"days","countNumber":14},"action":{"type":"expire"}}]}'
SECRETS=$(mktemp -d)
trap 'rm -rf "$SECRETS"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

say() { printf '%s\n' "$*" >&2; }
die() {
  say "build_and_push: $*"
  exit 1
}

# attempt WHAT COMMAND…: run it, and on failure say what was attempted and what it answered.
attempt() {
  local what=$1
  shift
  "$@" 2>"$SECRETS/stderr" || die "$what failed: $(tail -n 5 "$SECRETS/stderr")"
}

parse_arguments() {
  allow_dirty=no tag=''
  while (($#)); do
    case $1 in
      -h | --help) usage 0 ;;
      --dirty) allow_dirty=yes ;;
      -*) say "build_and_push: unknown option '$1'" && usage 2 ;;
      *) [[ -z $tag ]] || usage 2; tag=$1 ;;
    esac
    shift
  done
  [[ -z $tag || $tag =~ ^[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}$ ]] || die "'$tag' is no tag: letters, digits, '_', '.' and '-', at most 128"
}

choose_engine() {
  engine=${CONTAINER_ENGINE:-$(container/engine.sh ensure)} || die 'there is no container engine: see above'
  "$engine" info >/dev/null 2>&1 || die "'$engine info' fails: start the engine, or choose another with CONTAINER_ENGINE"
  case $("$engine" --version) in *odman*) engine_kind=podman ;; *) engine_kind=docker ;; esac
  command -v aws >/dev/null || die 'the aws command is missing: pip install awscli'
}

# The revision is the first part of the version, so the tree must be the revision.
find_revision() {
  revision=$(git rev-parse --short=12 HEAD 2>/dev/null) || die 'this folder is no git repository with a commit: the revision names the image'
  [[ -n $(git status --porcelain) ]] || return 0
  [[ $allow_dirty == yes ]] || die 'the tree has uncommitted changes: commit them, or pass --dirty'
  local change
  change=$( (git diff HEAD --binary && git ls-files --others --exclude-standard -z | xargs -0 -r sha256sum) | sha256sum)
  revision+=-dirty-${change:0:12}
}

# One revision makes as many images as there are settings. Those of free text are told apart by a hash: a tag is short.
name_version() {
  version=$revision${PRETRAINED:+-$PRETRAINED}
  [[ ${TORCH:-cuda} == cuda ]] || version+=-$TORCH
  [[ $PLATFORM == linux/amd64 ]] || version+=-${PLATFORM#linux/}
  [[ ${BASE:-debian:bookworm-slim} == debian:bookworm-slim ]] || version+=-base-$(short_hash "$BASE")
  [[ ${RUN_AS:-root} == root ]] || version+=-user-$(short_hash "$RUN_AS")
}

short_hash() {
  local hash
  hash=$(printf '%s' "$1" | sha256sum)
  printf '%s' "${hash:0:8}"
}

find_repository() {
  attempt 'asking AWS who you are (aws sts get-caller-identity)' aws sts get-caller-identity --output json >/dev/null
  repository_uri >"$SECRETS/uri" 2>"$SECRETS/stderr" || create_repository
  uri=$(repository_uri)
  registry=${uri%%/*}
  aws ecr get-lifecycle-policy --repository-name "$REPOSITORY" >/dev/null 2>&1 ||
    attempt 'setting the lifecycle policy' aws ecr put-lifecycle-policy --repository-name "$REPOSITORY" \
      --lifecycle-policy-text "$LIFECYCLE" >/dev/null
}

repository_uri() {
  aws ecr describe-repositories --repository-names "$REPOSITORY" --query 'repositories[0].repositoryUri' --output text
}

create_repository() {
  grep -q RepositoryNotFoundException "$SECRETS/stderr" || die "looking up repository '$REPOSITORY' failed: $(<"$SECRETS/stderr")"
  say "creating ECR repository '$REPOSITORY'"
  local filters=() moving encryption='encryptionType=AES256'
  for moving in $MOVING_TAGS; do filters+=("filterType=WILDCARD,filter=$moving"); done
  [[ -z ${KENNEL_KMS_KEY:-} ]] || encryption="encryptionType=KMS,kmsKey=$KENNEL_KMS_KEY"
  attempt "creating repository '$REPOSITORY'" aws ecr create-repository --repository-name "$REPOSITORY" \
    --image-tag-mutability IMMUTABLE_WITH_EXCLUSION --image-tag-mutability-exclusion-filters "${filters[@]}" \
    --image-scanning-configuration scanOnPush=true --encryption-configuration "$encryption" >/dev/null
}

# digest_of TAG: the digest that ECR holds under it; nothing where there is none.
digest_of() {
  aws ecr describe-images --repository-name "$REPOSITORY" --image-ids "imageTag=$1" \
    --query 'imageDetails[0].imageDigest' --output text 2>"$SECRETS/stderr" ||
    grep -q ImageNotFoundException "$SECRETS/stderr" || die "looking up '$REPOSITORY:$1' failed: $(<"$SECRETS/stderr")"
}

# Credentials go to a folder that ends with this script; what engine to talk to is still read from yours.
log_in() {
  if [[ $engine_kind == docker && -z ${DOCKER_HOST:-} ]]; then
    DOCKER_HOST=$("$engine" context inspect --format '{{.Endpoints.docker.Host}}') && export DOCKER_HOST
  fi
  export DOCKER_CONFIG=$SECRETS REGISTRY_AUTH_FILE=$SECRETS/auth.json
  attempt 'asking ECR for a login' aws ecr get-login-password >"$SECRETS/password"
  attempt "logging in to $registry" "$engine" login --username AWS --password-stdin "$registry" <"$SECRETS/password" >/dev/null
  rm -f "$SECRETS/password"
}

build() {
  say "building $uri:$version"
  ENGINE=$engine IMAGE=$uri:$version REVISION=$revision container/build.sh >&2 ||
    die 'the build failed: its last lines are above'
}

push() {
  say "pushing $uri:$1"
  if [[ $engine_kind == podman ]]; then
    attempt "pushing $uri:$1" "$engine" push --digestfile "$SECRETS/digest" "$uri:$1" >&2
    return
  fi
  attempt "pushing $uri:$1" "$engine" push "$uri:$1" >&2
  "$engine" image inspect --format '{{range .RepoDigests}}{{println .}}{{end}}' "$uri:$1" |
    sed -n "s|^$uri@||p" | head -n 1 >"$SECRETS/digest"
}

build_and_push() {
  build
  log_in
  push "$version"
  digest=$(<"$SECRETS/digest")
  if [[ -n $tag ]]; then
    "$engine" tag "$uri:$version" "$uri:$tag" && push "$tag"
  fi
}

# Give a version that ECR holds already its second tag, without pulling it.
move_tag() {
  [[ -n $tag ]] || return 0
  local tagged
  tagged=$(digest_of "$tag")
  [[ $tagged != "$digest" ]] || return 0
  say "tagging $version as $tag"
  aws ecr batch-get-image --repository-name "$REPOSITORY" --image-ids "imageTag=$version" \
    --query 'images[0].imageManifest' --output text >"$SECRETS/manifest" || die "reading the manifest of $version failed"
  # --output text adds one newline, which the substitution takes off again; ECR refuses a manifest of another digest.
  attempt "tagging $version as '$tag' (a tag other than: $MOVING_TAGS; never moves)" \
    aws ecr put-image --repository-name "$REPOSITORY" --image-tag "$tag" \
    --image-digest "$digest" --image-manifest "$(<"$SECRETS/manifest")" >/dev/null
}

main() {
  parse_arguments "$@"
  cd "$(dirname "${BASH_SOURCE[0]}")"
  choose_engine
  find_revision
  name_version
  find_repository
  digest=$(digest_of "$version")
  if [[ -n $digest ]]; then
    say "$uri:$version is there already"
    move_tag
  else
    build_and_push
  fi
  printf '%s\n' "$uri@$digest"
}

main "$@"
