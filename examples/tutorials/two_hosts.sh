#!/usr/bin/env bash
# Two hosts on one Linux machine, for trying a training over several machines on a laptop.
#
#   sudo ./two_hosts.sh up                     make the hosts `alpha` and `beta`
#   sudo ./two_hosts.sh run alpha COMMAND...   run a command on one of them, as if you had logged in there
#   sudo ./two_hosts.sh down                   end what runs on them, and remove them
#
# A host is a network namespace: it has a name, an address, a file /etc/hosts and an sshd of its own. The files and the
# processors are the machine's, so the folder that a cluster has to share is simply there. Needs the packages
# openssh-server and iproute2 (Debian, Ubuntu: apt-get install openssh-server iproute2; for runner_type pdsh also pdsh).
# Everything is kept in FOLDER, /tmp/two_hosts unless you set it; a second pair needs another NAME too. After a restart of the
# machine nothing is left but that folder.
set -euo pipefail

folder=${FOLDER:-/tmp/two_hosts}
hosts=(alpha beta)
addresses=(10.90.0.1 10.90.0.2)
space=${NAME:-two-hosts}- # what the names of the network namespaces begin with
switch=${space}switch # the network between them

fail() {
    echo "error: $*" >&2
    exit 2
}

# Run a command on a host. `ip netns exec` gives it the network and the files of /etc/netns/HOST in the place of those
# in /etc, `unshare --uts` a host name that may be changed.
on() {
    local host=$1
    shift
    ip netns exec "$space$host" unshare --uts sh -ec "hostname $host; exec \"\$@\"" sh "$@"
}

up() {
    [ ! -e "/run/netns/$switch" ] || fail "they are up already; remove them first: $0 down"
    sshd=$(command -v sshd) || fail "sshd is missing; install openssh-server"
    mkdir -p "$folder" /run/sshd # sshd wants the latter to be there
    chmod 700 "$folder"

    # A key to log in with.
    [ -e "$folder/key" ] || ssh-keygen -q -t ed25519 -N '' -f "$folder/key"
    cp "$folder/key.pub" "$folder/authorized_keys"
    : >"$folder/known_hosts"

    # A switch, into which each host will be plugged.
    ip netns add "$switch"
    ip -n "$switch" link add bridge type bridge
    ip -n "$switch" link set bridge up

    for i in 0 1; do
        local host=${hosts[i]} address=${addresses[i]}

        # The names by which the hosts know each other. Each knows its own address too: where a host's name leads to
        # 127.0.1.1, as Debian writes it, the others would be told to connect to that.
        mkdir -p "/etc/netns/$space$host"
        printf '127.0.0.1 localhost\n%s %s\n%s %s\n' \
            "${addresses[0]}" "${hosts[0]}" "${addresses[1]}" "${hosts[1]}" >"/etc/netns/$space$host/hosts"
        printf 'passwd: files\ngroup: files\nhosts: files\n' >"/etc/netns/$space$host/nsswitch.conf"

        # The host, and its cable to the switch.
        ip netns add "$space$host"
        ip link add "port$i" netns "$switch" type veth peer name eth0 netns "$space$host"
        ip -n "$switch" link set "port$i" master bridge up
        ip -n "$space$host" address add "$address/24" dev eth0
        ip -n "$space$host" link set eth0 up
        ip -n "$space$host" link set lo up

        # Its sshd. Whoever logs in there knows it by its key.
        [ -e "$folder/$host.key" ] || ssh-keygen -q -t ed25519 -N '' -f "$folder/$host.key"
        echo "$host,$address $(cut -d ' ' -f 1,2 "$folder/$host.key.pub")" >>"$folder/known_hosts"
        cat >"$folder/$host.conf" <<END
ListenAddress $address
HostKey $folder/$host.key
PidFile $folder/$host.pid
AuthorizedKeysFile $folder/authorized_keys
StrictModes no
PasswordAuthentication no
PermitRootLogin prohibit-password
END
        on "$host" "$sshd" -f "$folder/$host.conf" -E "$folder/$host.log"
    done

    # What a training is told as runner.ssh_config, and ssh with -F.
    cat >"$folder/ssh_config" <<END
User root
IdentityFile $folder/key
IdentitiesOnly yes
UserKnownHostsFile $folder/known_hosts
END
    echo "alpha and beta are up. Try: $0 run alpha ssh -F $folder/ssh_config beta hostname"
}

down() {
    for name in "${hosts[@]/#/$space}" "$switch"; do
        [ -e "/run/netns/$name" ] || continue
        # All that runs there, the sshd too; what is started meanwhile is found by the next look.
        while pids=$(ip netns pids "$name") && [ -n "$pids" ]; do
            xargs kill -9 <<<"$pids" 2>/dev/null || true
            sleep 0.1
        done
        ip netns delete "$name"
        rm -rf "/etc/netns/${name:?}"
    done
    rmdir /etc/netns 2>/dev/null || true
    rm -f "$folder"/{key,key.pub,authorized_keys,known_hosts,ssh_config} "$folder"/{alpha,beta}.{key,key.pub,conf,log,pid}
    rmdir "$folder" 2>/dev/null || true
}

[ "$(id -u)" = 0 ] || fail "network namespaces can only be made by root; try: sudo $0 $*"
case ${1:-} in
up | down)
    "$1"
    ;;
run)
    [ $# -ge 3 ] || fail "name a host and a command: $0 run ${hosts[0]} COMMAND..."
    [ -e "/run/netns/$space$2" ] || fail "there is no host $2; make them first: $0 up"
    shift
    on "$@"
    ;;
*)
    fail "say what to do: $0 up, $0 run HOST COMMAND..., or $0 down"
    ;;
esac
