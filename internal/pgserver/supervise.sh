# supervise.sh FOLDER BINARIES RESTART [SETTING...]
#
# Runs one throw-away server in FOLDER for as long as standard input is open.
# The other end of that pipe is the process that wants the server: however it
# ends, kill -9 included, the pipe closes, the server stops and FOLDER goes.
# With RESTART not empty, a server that ended by itself is started again.
set -u
folder=$1 binaries=$2 restart=$3
shift 3
exec 3<&0 </dev/null
trap 'rm -rf "$folder"' EXIT

# --locale=C is there on every machine, and messages in it can be recognised.
"$binaries/initdb" --pgdata="$folder/data" --username=postgres --pwfile="$folder/password" \
    --auth=scram-sha-256 --encoding=UTF8 --locale=C --no-sync || exit 1
rm -f "$folder/password"

# Immediate shutdown: the data is thrown away, so a checkpoint would be waste,
# and it also ends backends that a test has stopped or that hold on.
server='' stopping=''
trap 'stopping=1; kill -QUIT "$server" 2>/dev/null' HUP INT TERM
{
    read -r _ <&3
    kill -TERM $$ 2>/dev/null
} &
watcher=$!

while [ -z "$stopping" ]; do
    "$binaries/postgres" -D "$folder/data" "$@" 3<&- &
    server=$!
    # It may have been told to stop while the server was being started.
    [ -z "$stopping" ] || kill -QUIT "$server" 2>/dev/null
    # A trapped signal ends wait early, so ask again until the server is gone.
    while kill -0 "$server" 2>/dev/null; do
        wait "$server"
    done
    [ -n "$restart" ] || break
    # The processes of a server that was killed hold its memory until they
    # notice, and the next one ends at once until then.
    [ -n "$stopping" ] || sleep 0.05
done
kill "$watcher" 2>/dev/null
exit 0
