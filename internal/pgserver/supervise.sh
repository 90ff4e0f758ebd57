# supervise.sh FOLDER BINARIES RESTART [SETTING...]
#
# Runs one throw-away server in FOLDER for as long as standard input is open.
# The other end of that pipe is the process that wants the server: however it
# ends, kill -9 included, the pipe closes, the server stops and FOLDER goes.
#
# Where FOLDER/data is not there it is made first: as a copy of the server whose
# connection string is in FOLDER/primary, to follow it as its standby, or else
# as a new server. With RESTART not empty, a server that ended by itself is
# started again, once no FOLDER/down is there.
set -u
folder=$1 binaries=$2 restart=$3
shift 3
exec 3<&0 </dev/null
trap 'rm -rf "$folder"' EXIT

# Immediate shutdown: the data is thrown away, so a checkpoint would be waste,
# and it also ends backends that a test has stopped or that hold on.
child='' stopping=''
trap 'stopping=1; kill -QUIT "$child" 2>/dev/null' HUP INT TERM
{
    read -r _ <&3
    kill -TERM $$ 2>/dev/null
} &
watcher=$!

# run COMMAND... runs it until it ends, and returns how.
run() {
    "$@" 3<&- &
    child=$!
    # It may have been told to stop while the command was being started.
    [ -z "$stopping" ] || kill -QUIT "$child" 2>/dev/null
    wait "$child"
    status=$?
    # A trapped signal ends wait early, so ask again until the command is gone.
    while kill -0 "$child" 2>/dev/null; do
        wait "$child"
        status=$?
    done
    return "$status"
}

make_data() {
    if [ -e "$folder/primary" ]; then
        run "$binaries/pg_basebackup" --pgdata="$folder/data" --dbname="$(cat "$folder/primary")" \
            --write-recovery-conf --checkpoint=fast --no-sync
        return
    fi
    # --locale=C is there on every machine, and messages in it can be recognised.
    run "$binaries/initdb" --pgdata="$folder/data" --username=postgres --pwfile="$folder/password" \
        --auth=scram-sha-256 --encoding=UTF8 --locale=C --no-sync
}

while [ -z "$stopping" ]; do
    if [ ! -e "$folder/data" ]; then
        make_data || break
        rm -f "$folder/password"
    fi
    run "$binaries/postgres" -D "$folder/data" "$@"
    [ -n "$restart" ] || break
    # The processes of a server that was killed hold its memory until they
    # notice, and the next one ends at once until then.
    while [ -z "$stopping" ]; do
        sleep 0.05
        [ -e "$folder/down" ] || break
    done
done
kill "$watcher" 2>/dev/null
exit 0
