# supervise.sh FOLDER BINARIES [SETTING...]
#
# Runs one throw-away server in FOLDER for as long as standard input is open.
# The other end of that pipe is the process that wants the server: however it
# ends, kill -9 included, the pipe closes, the server stops and FOLDER goes.
set -u
folder=$1 binaries=$2
shift 2
exec 3<&0 </dev/null
trap 'rm -rf "$folder"' EXIT

# --locale=C is there on every machine, and messages in it can be recognised.
"$binaries/initdb" --pgdata="$folder/data" --username=postgres --pwfile="$folder/password" \
    --auth=scram-sha-256 --encoding=UTF8 --locale=C --no-sync || exit 1
rm -f "$folder/password"

"$binaries/postgres" -D "$folder/data" "$@" 3<&- &
server=$!
# Immediate shutdown: the data is thrown away, so a checkpoint would be waste,
# and it also ends backends that a test has stopped or that hold on.
{
    read -r _ <&3
    kill -QUIT "$server" 2>/dev/null
} &
watcher=$!
trap 'kill -QUIT "$server" 2>/dev/null' HUP INT TERM

# A trapped signal ends wait early, so ask again until the server is gone.
while kill -0 "$server" 2>/dev/null; do
    wait "$server"
done
kill "$watcher" 2>/dev/null
exit 0
