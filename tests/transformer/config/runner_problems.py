"""Problems of the section `runner`, for tests/transformer/config/test_problems.py."""

from __future__ import annotations

RUNNER_PROBLEMS = [
    (
        "runner: {hosts: [a], hostfile: b}",
        "runner.hosts: is given together with hostsfile ('b'); remove one",
    ),
    (
        "runner: {hosts: [a slots=2, 'b; rm']}",
        "runner.hosts.1: is 'b; rm'; write `name`, `name slots=4` or `name slots=0,2`",
    ),
    (
        "runner: {docker_config: {docker_mounts: [[/a, /b], [/a, /b, c, d]]}}",
        "runner.docker_config.docker_mounts.1: has 4 parts; write [path on the host, path in the container]",
    ),
    (
        "runner: {docker_config: {docker_mounts: [[data, /data]]}}",
        "runner.docker_config.docker_mounts.0: has 'data'; write absolute paths without a colon",
    ),
    (
        "runner: {hosts: [a slots=0]}",
        "runner.hosts.0: is 'a slots=0', which offers no process; write `name`, `name slots=4` or `name slots=0,2`",
    ),
    (
        "runner: {hosts: ['a slots=0,0']}",
        "runner.hosts.0: is 'a slots=0,0', which names GPU 0 more than once; name each GPU once",
    ),
    (
        "runner: {runner_type: kubernetes}",
        "runner.kubernetes.image: is needed for kubernetes: an image that has this library",
    ),
    (
        "runner: {kubernetes: {name: My Job}}",
        "runner.kubernetes.name: is 'My Job'; write up to 32 of a-z, 0-9 and -, beginning with a letter",
    ),
    (
        "runner: {kubernetes: {volumes: [[data, data]]}}",
        "runner.kubernetes.volumes.0: is ['data', 'data']; write [name of the claim, path in the container]",
    ),
    (
        "runner: {kubernetes: {secrets: {A-KEY: wandb/key}}}",
        "runner.kubernetes.secrets.A-KEY: is no name of a variable; write letters, digits and _",
    ),
    (
        "runner: {kubernetes: {secrets: {WANDB_API_KEY: hush}}}",
        "runner.kubernetes.secrets.WANDB_API_KEY: is not of the form secret/key; name the Secret and its key, never "
        "the value",
    ),
    (
        "runner: {slurm: {partition: 'a b'}}",
        "runner.slurm.partition: is 'a b'; write it as sbatch takes it, without spaces and quotes",
    ),
    (
        "runner: {slurm: {lines: [exclusive]}}",
        "runner.slurm.lines.0: is 'exclusive'; write one option of sbatch, such as `--exclusive`",
    ),
    (
        "runner: {forward_environment: ['A B']}",
        "runner.forward_environment.0: is 'A B'; write a name, with * for any letters",
    ),
    (
        "runner: {runner_type: pdsh_docker}",
        "runner.docker_config.docker_container: is needed for pdsh_docker: the name of the image",
    ),
]
