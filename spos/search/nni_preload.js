// Loaded into NNI 3.0's manager (Node) before its own code, by NODE_OPTIONS="--require <this file>".
// It changes no file of NNI. `spos.search.launch` sets it; plain `nnictl` runs without it.
//
//   1. The server listens on the loopback interface only. NNI binds every interface, asks for no
//      password and unpickles what it is sent: whoever reaches the port can run code as the user.
//   2. Requests whose Host or Origin is another machine's name are refused (403), so that a web page
//      in the user's browser cannot reach the server through DNS rebinding or a WebSocket.
//   3. Every trial gets the parameters that NNI's database says it has. NNI hands them to whichever
//      trial asks first, so with several trials at once scores appear beside other architectures.
//   4. A GPU request that equals the number of GPUs is met (NNI refuses it), and one that cannot be
//      met now waits. NNI asks again at once, for ever, starting a Python process each time.
//   5. Machines of the remote service reach the server through the SSH connection that NNI has to
//      them, as a reverse tunnel, so (1) holds for them too; their own part of NNI runs with this
//      file. Nothing is installed on them (NNI would upgrade itself from the package index). One
//      that is lost does not end the search: NNI alone waits for its answers for ever, and stops
//      with an error if its SSH connection breaks, or a new one while it is made.
//   6. The tuner has half a minute to start. NNI gives up after ten seconds, which are too few on a
//      busy machine.
//
// NNI's upstream is archived, so the classes that are patched here do not move. The launcher checks
// that (2) holds and stops the experiment if not; the tuner learns of (3) from SPOS_PAIRED_TRIALS.
'use strict';

const crypto = require('crypto');
const fs = require('fs');
const http = require('http');
const net = require('net');
const Module = require('module');

const LOOPBACK = '127.0.0.1';
const RETRY_MILLISECONDS = 2000;
const TUNER_MILLISECONDS = 30000;
const sleep = milliseconds => new Promise(resolve => setTimeout(resolve, milliseconds));

// 1. Loopback only: listen(port), listen(port, callback), listen({port}) name no address.
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (...args) {
    const [target, second] = args;
    if (typeof target === 'number' && typeof second !== 'string') {
        args.splice(1, 0, LOOPBACK);
    } else if (target && typeof target === 'object' && target.port !== undefined && !target.host) {
        args[0] = { ...target, host: LOOPBACK };
    }
    return listen.apply(this, args);
};

// 2. Only requests to and from this machine.
const LOCAL_HOST = /^(localhost|127\.0\.0\.1|\[::1\])(:\d+)?$/;
const LOCAL_ORIGIN = /^https?:\/\/(localhost|127\.0\.0\.1|\[::1\])(:\d+)?$/;

function isLocal(request) {
    const { host, origin } = request.headers;
    return LOCAL_HOST.test(host || '') && (origin === undefined || LOCAL_ORIGIN.test(origin));
}

const emit = http.Server.prototype.emit;
http.Server.prototype.emit = function (event, request, response, ...rest) {
    if (event === 'request' && !isLocal(request)) {
        response.statusCode = 403;
        response.end('forbidden: this server answers its own machine only\n');
        return true;
    }
    if (event === 'upgrade' && !isLocal(request)) {
        response.destroy(); // for this event it is the socket
        return true;
    }
    return emit.call(this, event, request, response, ...rest);
};

// 3. NNI has a way to give a certain trial certain parameters: the one for trials run again after a
// resume, chosen by `id` and `envId`. Taking it for every trial bypasses the common queue.
function pairTrials(Service) {
    const submit = Service.prototype.submitTrialJob;
    Service.prototype.submitTrialJob = async function (form) {
        await this.startDeferred.promise;
        if (!form.id) {
            form.id = newTrialId();
            while ((form.envId = this.schedule()) === null) {
                await sleep(1000);
            }
        }
        return submit.call(this, form);
    };
    process.env.SPOS_PAIRED_TRIALS = '1'; // inherited by the tuner, which is started after this
}

function newTrialId() {
    const letters = 'abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ'; // as NNI's own ids
    return Array.from({ length: 8 }, () => letters[crypto.randomInt(letters.length)]).join('');
}

// Until there is room for the trial. Giving up would put its parameters into the common queue.
function waitForRoom(Service) {
    const create = Service.prototype.createTrial;
    Service.prototype.createTrial = async function (...args) {
        let id;
        while ((id = await create.apply(this, args)) === null) {
            await sleep(RETRY_MILLISECONDS);
        }
        return id;
    };
}

// 4. NNI compares with >= where it should with >, and fails when every GPU is in use by others.
function meetGpuRequests(Scheduler) {
    const schedule = Scheduler.prototype.schedule;
    Scheduler.prototype.schedule = async function (experimentId, trialId, gpuNumber, restrictions) {
        if (this.sortGpus(restrictions || {}).length === 0) {
            return null; // none is free
        }
        // Slightly less than all of them: still too much for a second trial on any of them.
        const request = gpuNumber === this.gpus.length ? gpuNumber * 0.9995 : gpuNumber;
        return schedule.call(this, experimentId, trialId, request, restrictions);
    };
}

// 5. Before NNI runs its first command on a machine: the way back, and this file.
function tunnelBack(Worker) {
    const findPython = Worker.prototype.findPython;
    Worker.prototype.findPython = async function () {
        const { client } = this.ssh;
        client.on('error', error => this.log.error('SSH connection lost:', error));
        const url = new URL(this.channelUrl);
        const port = await forward(client, Number(url.port));
        this.channelUrl = `${url.protocol}//${LOOPBACK}:${port}${url.pathname}`;
        const python = await findPython.call(this);
        const run = this.ssh.run;
        this.ssh.run = command => run.call(
            this.ssh,
            command.includes('-m pip install nni') ? `${python} -c "import nni"` : command,
        );
        const folder = await this.ssh.run('mktemp -d');
        await this.ssh.writeFile(`${folder}/nni_preload.js`, fs.readFileSync(__filename, 'utf8'));
        return `NODE_OPTIONS='--require "${folder}/nni_preload.js"' ${python}`;
    };
}

// NNI listens for the first error until the connection stands; one that breaks off has a second.
function outliveErrors(Client) {
    const connect = Client.prototype.connect;
    Client.prototype.connect = function (...args) {
        this.on('error', () => {});
        return connect.apply(this, args);
    };
}

// A port of the machine's loopback that leads to `port` of ours; ends with the SSH connection.
function forward(client, port) {
    client.on('tcp connection', (_details, accept) => {
        const there = accept();
        const here = net.connect(port, LOOPBACK);
        here.on('error', () => there.destroy());
        there.on('error', () => here.destroy());
        there.pipe(here).pipe(there);
    });
    return new Promise((resolve, reject) => {
        client.forwardIn(LOOPBACK, 0, (error, given) => (error ? reject(error) : resolve(given)));
    });
}

function outliveWorkers(Service) {
    // What was asked of a machine that is lost meanwhile is never answered.
    const untilLost = async (service, envId, answer) => {
        let isAnswered = false;
        const settled = answer.catch(() => null).finally(() => { isAnswered = true; });
        const lost = (async () => {
            while (!isAnswered && service.workersByEnv.has(envId)) {
                await sleep(RETRY_MILLISECONDS / 4);
            }
            return null;
        })();
        return Promise.race([settled, lost.then(() => (isAnswered ? settled : null))]);
    };
    const create = Service.prototype.createTrial;
    Service.prototype.createTrial = async function (envId, ...args) {
        for (let number = 0; ; number += 1) {
            const id = await untilLost(this, envId, create.call(this, envId, ...args));
            if (id !== null) {
                return id;
            }
            await sleep(RETRY_MILLISECONDS); // there may be room later, or on another machine
            const working = Array.from(this.workersByEnv.keys());
            envId = working.length > 0 ? working[number % working.length] : envId;
        }
    };
    const stop = Service.prototype.stopTrial;
    Service.prototype.stopTrial = async function (trialId) {
        const envId = this.workersByTrial.get(trialId)?.envId;
        return untilLost(this, envId, stop.call(this, trialId));
    };
    // One that could not be started again stays in NNI's list of those to start trials on.
    const restart = Service.prototype.restartWorker;
    Service.prototype.restartWorker = async function (worker) {
        const before = new Set(this.workers);
        await restart.call(this, worker);
        for (const each of this.workers.filter(each => !before.has(each) && !each.uploadDir)) {
            this.stopWorker(each, true);
        }
    };
}

// 6. Waiting for the tuner's connection.
function awaitTuner(TunerServer) {
    TunerServer.prototype.init = async function () {
        const timer = setTimeout(() => {
            const text = `the tuner did not connect in ${TUNER_MILLISECONDS / 1000} seconds`;
            this.connect.reject(new Error(`${text}; see dispatcher.log`));
        }, TUNER_MILLISECONDS);
        await this.connect.promise.finally(() => clearTimeout(timer));
    };
}

// class -> a method of it, which tells it from others of that name, and what to do with it
const PATCHES = {
    V3asV1: ['submitTrialJob', pairTrials],
    LocalTrainingServiceV3: ['createTrial', waitForRoom],
    RemoteTrainingServiceV3: ['restartWorker', outliveWorkers],
    Worker: ['launchTrialKeeperDaemon', tunnelBack],
    Client: ['forwardIn', outliveErrors],
    TaskScheduler: ['schedule', meetGpuRequests],
    TunerServer: ['init', awaitTuner],
};
function find(exports, name) {
    if (name === 'TunerServer' && typeof exports.getTunerServer === 'function') {
        return exports.getTunerServer().constructor; // the one class that is not exported
    }
    return exports[name];
}

const patched = new Set();
const load = Module._load;
Module._load = function (...args) {
    const exports = load.apply(this, args);
    for (const [name, [method, patch]] of Object.entries(PATCHES)) {
        // A class is patched once, though several modules export it; half-loaded modules lack it.
        const found = exports && typeof exports === 'object' ? find(exports, name) : undefined;
        if (typeof found?.prototype?.[method] === 'function' && !patched.has(name)) {
            patched.add(name);
            patch(found);
        }
    }
    return exports;
};
