#!/bin/sh
# Print the command of a container engine that answers, starting or installing one where that is possible.
#
#   container/engine.sh find      an engine that answers now, or exit 1
#   container/engine.sh ensure    the same, but first start an installed one, or install docker.io (root, Debian or
#                                 Ubuntu; asks on a terminal)
#
# A client is no engine: an engine is what `info` answers for. Docker needs BuildKit: its client 20.10 has it built
# in, later ones need the buildx plugin.
set -eu

say() { echo "engine: $*" >&2; }

# Every docker on PATH: a client without BuildKit may stand before one with it.
dockers() {
    echo "$PATH" | tr ':' '\n' | while read -r folder; do
        if [ -x "$folder/docker" ]; then echo "$folder/docker"; fi
    done
}

can_build() {
    "$1" buildx version >/dev/null 2>&1 && return 0
    major=$("$1" version --format '{{.Client.Version}}' 2>/dev/null | cut -d. -f1)
    [ "${major:-99}" -lt 23 ]
}

find_docker() {
    for engine in $(dockers); do
        if answers "$engine" && can_build "$engine"; then
            echo "$engine"
            return 0
        fi
    done
    return 1
}

answers() { "$1" info >/dev/null 2>&1; }

find_podman() {
    command -v podman >/dev/null && podman info >/dev/null 2>&1 && command -v podman
}

start_docker() {
    for engine in $(dockers); do
        if answers "$engine"; then
            say "$engine answers, but has no BuildKit; install its buildx plugin (package docker-buildx or docker-buildx-plugin)"
            return 1
        fi
    done
    command -v dockerd >/dev/null || return 1
    if [ "$(id -u)" -ne 0 ]; then
        say "docker is installed but does not answer; start it (sudo systemctl start docker) and see that you are in its group"
        return 1
    fi
    say "docker is installed but does not answer; starting it"
    if [ -d /run/systemd/system ]; then
        if systemctl start docker && find_docker; then return 0; fi
        say "docker does not start; journalctl -u docker says why"
        return 1
    fi
    run_dockerd
}

# Where nothing starts services, such as in a virtual machine for builds.
run_dockerd() {
    daemon=$(pidof -s dockerd) || {
        rm -f /var/run/docker.pid # of a daemon that was killed
        setsid dockerd >/var/log/dockerd.log 2>&1 </dev/null &
        daemon=$!
    }
    waited=0
    until find_docker; do
        waited=$((waited + 1))
        if [ "$waited" -gt 60 ] || ! kill -0 "$daemon" 2>/dev/null; then
            say "dockerd does not answer; its last words: $(tail -n 3 /var/log/dockerd.log)"
            return 1
        fi
        sleep 1
    done
}

install_docker() {
    command -v dockerd >/dev/null && return 1 # it is installed, and does not start or cannot build
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        say "no container engine answers; start Docker or Podman, or install one (https://docs.docker.com/engine/install), then run this again"
        return 1
    fi
    if [ -t 0 ]; then
        printf 'No container engine was found. Install docker.io from the distribution (about 250 MB)? [Y/n] ' >&2
        read -r answer || return 1
        case $answer in [nN]*) return 1 ;; esac
    else
        say "no container engine was found; installing docker.io from the distribution"
    fi
    apt-get update -qq >/dev/null
    packages=docker.io
    for part in docker-cli docker-buildx; do # parts of docker.io, where they are no packages
        if apt-cache show "$part" >/dev/null 2>&1; then packages="$packages $part"; fi
    done
    # shellcheck disable=SC2086  # a list of names
    apt-get install -y -qq --no-install-recommends $packages >/dev/null
}

case ${1:-} in
    find) find_docker || find_podman || exit 1 ;;
    ensure) find_docker || start_docker || find_podman || { install_docker && { find_docker || start_docker; }; } || exit 1 ;;
    *) say "usage: container/engine.sh find|ensure"; exit 2 ;;
esac
