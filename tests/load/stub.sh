#!/bin/sh
# The `python` of a sandbox in which nothing is to be measured. A step of its own says that it runs, until it is told to
# end; so does a step host, to which nobody speaks. Whoever would speak to it, the client of a step's turn, says what
# the host would: that it has begun, and, once that turn's pipe is written to, that it has ended.
case $3 in
*/host/client.py)
    turn=$TURNS/$MODAL_SANDBOX_ID-$$
    printf '%s' "$5" > "$turn.call"
    mkfifo "$turn"
    cat "$TURNS/begun"
    read -r _ < "$turn"
    cat "$TURNS/ended"
    exit 0
    ;;
esac
trap 'exit 0' TERM
echo "running $*"
# Its server holds the other end: where that is gone, so is this.
while read -r _; do :; done
