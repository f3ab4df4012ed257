"""A machine that NNI may use over SSH, on the loopback: python ssh_worker.py FOLDER KEY.pub PORT

Its home and what it keeps lie in FOLDER; KEY.pub may log in. Commands run as on a real one, in a
shell of this user; files come and go by SFTP.
"""

import asyncio
import os
import sys
from pathlib import Path

import asyncssh


class Gate(asyncssh.SSHServer):
    """Lets a user who has the key open reverse tunnels, as an OpenSSH server does by default."""

    def server_requested(self, listen_host: str, listen_port: int) -> bool:
        return listen_host in ("localhost", "127.0.0.1")


async def serve(folder: Path, key: Path, port: int) -> None:
    home = folder.resolve()
    environment = {**os.environ, "HOME": str(home), "SSH_WORKER": home.name, "PIP_NO_INDEX": "1"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment.pop("NODE_OPTIONS", None)

    async def run(process: asyncssh.SSHServerProcess) -> None:
        child = await asyncio.create_subprocess_exec(
            "/bin/bash",
            "-c",
            process.command or "true",
            cwd=home,
            env=environment,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        out, err = await child.communicate()
        process.stdout.write(out)
        process.stderr.write(err)
        process.exit(child.returncode or 0)

    await asyncssh.listen(
        "127.0.0.1",
        port,
        server_factory=Gate,
        server_host_keys=[asyncssh.generate_private_key("ssh-ed25519")],
        authorized_client_keys=str(key),
        process_factory=run,
        sftp_factory=True,
        encoding=None,
    )
    sys.stdout.write("listening\n")
    sys.stdout.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])))
