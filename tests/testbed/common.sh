# shellcheck shell=bash
# common.sh - sourced by up, down, fault and on; not run by itself.
#
# A "host" is one process tree in its own network, PID, mount, UTS and IPC
# namespaces, so killing its init (PID 1) takes the whole host away, network
# link included: that is how `down` and `fault kill` work.
set -euo pipefail
TB_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
TB_STATE=$(realpath -m "${TB_STATE:-${TMPDIR:-/tmp}/testbed}")
ENV_FILE=$TB_STATE/env
# All but `up` must see the bridge and hosts that `up` made: what it wrote wins.
# shellcheck disable=SC1090
if [ "${0##*/}" != up ] && [ -f "$ENV_FILE" ]; then . "$ENV_FILE"; fi
TB_BRIDGE=${TB_BRIDGE:-tb0}         # give each concurrent test bed its own
TB_NET=${TB_NET:-10.77.0}           # bridge, /24 network and TB_STATE
TB_USER=alice                       # her uid is 2001
TB_OTHER=bob                        # another user of every host, 2002
TB_LONER=lab                        # the host beside a cluster that is none of its nodes
MARK="testbed $TB_STATE"            # alias of each of our network interfaces

die() { echo "${0##*/}: $*" >&2; exit 1; }
[ "$(id -u)" = 0 ] || die "must be root"
[[ $TB_STATE != *[[:space:]]* ]] || die "TB_STATE: no spaces"
[ ${#TB_BRIDGE} -le 6 ] || die "TB_BRIDGE: at most 6 characters"

lock() {    # one up/down/fault at a time; fd 9 is closed for the daemons
    mkdir -p "$TB_STATE"
    exec 9>"$TB_STATE/.lock"
    flock -w 60 9 || die "another up/down/fault is running ($TB_STATE/.lock)"
}

hosts()  { ls "$TB_STATE/hosts" 2>/dev/null || true; }
known()  { [ -d "$TB_STATE/hosts/$1" ] || die "no host '$1'; there are: $(hosts | xargs)"; }
stamp()  { awk '{print $22}' "/proc/$1/stat" 2>/dev/null; }   # start time of a pid

# PID of a host's init as seen from here; fails if it is not running.  The
# start time guards against a stale file and a reused pid.
host_pid() {
    local pid start
    read -r pid start 2>/dev/null < "$TB_STATE/hosts/$1/pid" || return 1
    [ -n "$start" ] && [ "$(stamp "$pid")" = "$start" ] && echo "$pid"
}

on_host() {     # on_host HOST CMD... : run as root in the host
    local pid; pid=$(host_pid "$1") || die "host $1 is down"; shift
    nsenter -t "$pid" -m -u -i -n -p -T env -i HOME=/root LANG=C.UTF-8 \
        TERM="${TERM:-dumb}" PATH=/usr/local/bin:/usr/sbin:/usr/bin "$@"
}

furnish() {         # the disks of a host, as good as new; it must be down
    local dir=$TB_STATE/hosts/$1
    # What was mounted on them went with the host: these are plain files.
    rm -rf --one-file-system "${dir:?}"/{scratch,var,home}
    mkdir -p "$dir"/{root,scratch,etc/ssh,etc/testbed,var/lib,var/log,var/spool,var/tmp}
    chmod 1777 "$dir/scratch" "$dir/var/tmp"
    ln -s /run "$dir/var/run"
    # The hosts of a cluster have one /home in common, which outlives each of them.
    if [ ! -d "$TB_STATE/home" ] || [ "$1" = "$TB_LONER" ]; then homes "$dir/home"; fi
}

homes() {           # homes DIR: a home of their own for all users
    local user uid=2001
    mkdir -p "$1"
    for user in "$TB_USER" "$TB_OTHER"; do
        install -d -o $uid -g $uid -m 700 "$1/$user"
        uid=$((uid + 1))
    done
}

start_host() {
    local name=$1 dir=$TB_STATE/hosts/$1 outer pid='' uptime i
    host_pid "$name" >/dev/null && return
    rm -f "$dir/pid" "$dir/var/log/ready"
    uptime=$(cut -d. -f1 /proc/uptime)  # its clock starts now: a reboot looks like one
    setsid unshare --time --boottime "-$uptime" --net --uts --ipc --mount --pid --fork --kill-child=KILL \
        env -i PATH=/usr/sbin:/usr/bin LANG=C.UTF-8 \
        /bin/bash "$TB_DIR/host-init" build "$dir" \
        </dev/null >>"$dir/var/log/init.log" 2>&1 9>&- &
    outer=$!
    for ((i = 0; i < 100; i++)); do     # the child of unshare is the init
        pid=$(cat "/proc/$outer/task/$outer/children" 2>/dev/null) || true
        pid=${pid%% *}; [ -n "$pid" ] && break
        sleep 0.02
    done
    [ -n "$pid" ] || die "host $name did not start: $(tail -3 "$dir/var/log/init.log")"
    echo "$pid $(stamp "$pid")" > "$dir/pid"
    plug "$name"
}

# plug HOST [MS [LOSS%]]: connect a host to the bridge, by a veth pair or by a
# slow and lossy cable (this kernel may well lack netem).  There is no default
# route: nothing leaves the bridge.  The address fixes the MAC, for ARP caches.
plug() {
    local name=$1 ip pid port=$TB_BRIDGE-$1 i
    ip=$(cat "$TB_STATE/hosts/$name/ip")
    pid=$(host_pid "$name") || die "host $name is down"
    ip link del "$port" 2>/dev/null || true
    for ((i = 0; i < 100; i++)); do     # a slow cable's program takes eth0 along
        nsenter -t "$pid" -n test -e /proc/sys/net/ipv4/conf/eth0 || break
        sleep 0.02
    done
    if [ $# = 1 ]; then
        ip link add "$port" type veth peer name eth0 netns "$pid"
    else
        setsid python3 "$TB_DIR/delay.py" "$port" "$pid" "${@:2}" \
            </dev/null >>"$TB_STATE/hosts/$name/var/log/delay.log" 2>&1 9>&- &
        for ((i = 0; i < 100; i++)); do
            if nsenter -t "$pid" -n test -e /proc/sys/net/ipv4/conf/eth0; then break; fi
            sleep 0.02
        done
    fi
    ip link set "$port" alias "$MARK"
    ip link set "$port" master "$TB_BRIDGE" up
    nsenter -t "$pid" -n sh -ec "ip link set lo up
        ip link set eth0 address 02:00:00:00:00:$(printf %02x "${ip##*.}")
        ip addr add $ip/24 dev eth0
        ip link set eth0 up"
}

memory_group() {    # the directory of a host's control group for memory; it need not be there
    local name=testbed-$TB_BRIDGE-$1 top=/sys/fs/cgroup
    if [ -e $top/cgroup.controllers ]; then echo "$top/$name"; else echo "$top/memory/$name"; fi
}

# limit HOST SIZE: what runs there, and what it starts, has so much memory and no swap.
limit() {
    local group pid init space process
    group=$(memory_group "$1")
    init=$(host_pid "$1") || die "host $1 is down"
    unable() { echo "fault: no limit of memory on this machine: $*" >&2; exit 4; }
    mkdir "$group" 2>/dev/null || unable "$group cannot be made"
    if [ -e "$group/memory.max" ]; then
        echo "$2" > "$group/memory.max"
        if [ -e "$group/memory.swap.max" ]; then echo 0 > "$group/memory.swap.max"; fi
    elif [ -e "$group/memory.limit_in_bytes" ]; then
        echo "$2" > "$group/memory.limit_in_bytes"
        echo 0 > "$group/memory.swappiness"
    else
        rmdir "$group"; unable "$group has no limit"
    fi
    space=$(readlink "/proc/$init/ns/pid")
    for process in /proc/[0-9]*; do
        pid=${process#/proc/}
        if [ "$(readlink "$process/ns/pid" 2>/dev/null)" = "$space" ]; then
            echo "$pid" > "$group/cgroup.procs" 2>/dev/null || true    # it may have ended
        fi
    done
}

kill_host() {       # power off; the link goes first, so no FIN or RST says goodbye
    local pid group i
    ip link del "$TB_BRIDGE-$1" 2>/dev/null || true
    if pid=$(host_pid "$1"); then
        kill -KILL "$pid" 2>/dev/null || true
        while [ -n "$(stamp "$pid")" ]; do sleep 0.02; done
    fi
    rm -f "$TB_STATE/hosts/$1/pid"
    group=$(memory_group "$1")
    if [ -d "$group" ]; then
        for ((i = 0; i < 100; i++)); do     # once its last process is reaped
            if rmdir "$group" 2>/dev/null; then break; fi
            sleep 0.02
        done
    fi
}

teardown() {        # harmless when nothing is up, or only half of it
    local h i
    for h in $(hosts); do kill_host "$h"; done
    for i in /sys/class/net/*; do
        if [ "$(cat "$i/ifalias" 2>/dev/null)" = "$MARK" ]; then
            ip link del "${i##*/}" 2>/dev/null || true
        fi
    done
    # Names only, never $TB_STATE itself: other things may live there.
    (cd "$TB_STATE" && rm -rf --one-file-system hosts shared etc env ssh_config \
        known_hosts id_ed25519 id_ed25519.pub home)
}
