# Starts the job whose script is in `$script` at once and prints its number last. Prints nothing if it must be submitted.
at_once() {
# Settings of batch jobs that the user's environment brings along are none for `salloc`.
env | grep -q '^SBATCH_' && return
# Noted below, within the last month.
find "$refused" -mtime -30 2>/dev/null | grep -q . && return
# Logging out would end `salloc`.
grep -qsi '^ *KillUserProcesses *= *\(yes\|true\|on\|1\)' /etc/systemd/logind.conf /etc/systemd/logind.conf.d/*.conf && return
command -v salloc >/dev/null && command -v setsid >/dev/null || return
start=$(printf '%s\n' "$script" | ask 2>&1 | sed -n 's/.* to start at \([0-9]*\) using .*/\1/p')
[ -n "$start" ] && [ "$start" -le $(($(date +%s) + 1)) ] || return
log=$folder/job.log
( export CELLFERRY_BEGUN=1; allocate bash -c "$attend" cellferry "$folder" "$script" ) > "$log" 2>&1 < /dev/null &
tries=0
until grep -q '^cellferry: begun' "$log"; do
    tries=$((tries + 1))
    if [ $tries -gt 500 ] || ! kill -0 $! 2>/dev/null; then
        for group in $! $(cat "$folder/group" 2>/dev/null); do kill -s KILL -- "-$group" 2>/dev/null; done
        scancel --quiet --user="$(id -u)" --name="$name" >/dev/null 2>&1
        # What it said shows why, if it had nodes.
        if grep -q 'Granted job allocation' "$log"; then mv "$log" "$refused"; else rm -f "$log"; fi
        return
    fi
    sleep 0.02
done
sed -n 's/^salloc: Granted job allocation \([0-9]*\).*/\1/p' "$log"
}
# Runs the script in a session of its own: when its job ends, `salloc` would end the script's `srun`, and that kills all that it
# has started at once, whereas Slurm itself asks it to end first.
attend='
trap : HUP INT TERM
setsid bash -c "$2" &
echo $! > "$1/group"
while :; do
    wait $!
    code=$?
    kill -0 $! 2>/dev/null || exit $code
done
'
