"""What the preload changes in NNI's manager that no search shows at will."""

import subprocess
from pathlib import Path

import nni_node

from spos.search import launch

PRELOAD = Path(launch.__file__).with_name("nni_preload.js")
NNI = Path(nni_node.__path__[0])

# As NNI does, it waits for an SSH connection to be ready; the server breaks it off.
BROKEN_CONNECTION = """
const net = require('net'), events = require('events');
const { Client } = require(process.argv[1]);
const server = net.createServer(socket => setTimeout(() => socket.resetAndDestroy(), 50));
server.listen(0, '127.0.0.1', async () => {
    const client = new Client();
    client.connect({ host: '127.0.0.1', port: server.address().port, username: 'me' });
    await events.once(client, 'ready').catch(error => console.log('refused:', error.message));
    setTimeout(() => server.close(() => console.log('went on')), 300);
});
"""


def run_node(*flags: str) -> subprocess.CompletedProcess[str]:
    command = [NNI / "node", *flags, "-e", BROKEN_CONNECTION, NNI / "node_modules" / "ssh2"]
    return subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=60
    )


def test_ssh_connection_that_breaks_while_it_is_made_does_not_end_the_manager():
    found = run_node("--require", str(PRELOAD))
    assert (found.returncode, found.stdout) == (0, "refused: read ECONNRESET\nwent on\n")


def test_without_the_preload_it_would():
    found = run_node()
    assert found.returncode != 0 and "Unhandled 'error' event" in found.stderr
