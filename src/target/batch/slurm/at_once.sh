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
# The group of the script's processes is not always that of `salloc`.
( export CELLFERRY_BEGUN=1; allocate bash -c 'echo $$ > "$1/group"; exec bash -c "$2"' cellferry "$folder" "$script" ) > "$log" 2>&1 < /dev/null &
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
