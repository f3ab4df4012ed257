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
//
// NNI's upstream is archived, so the classes that are patched here do not move. The launcher checks
// that (2) holds and stops the experiment if not; the tuner learns of (3) from SPOS_PAIRED_TRIALS.
'use strict';

const crypto = require('crypto');
const http = require('http');
const net = require('net');
const Module = require('module');

const LOOPBACK = '127.0.0.1';
const RETRY_MILLISECONDS = 2000;
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

const PATCHES = {
    V3asV1: pairTrials,
    LocalTrainingServiceV3: waitForRoom,
    TaskScheduler: meetGpuRequests,
};
const patched = new Set();
const load = Module._load;
Module._load = function (...args) {
    const exports = load.apply(this, args);
    for (const [name, patch] of Object.entries(PATCHES)) {
        // A class is patched once, though several modules export it; half-loaded modules lack it.
        const found = exports && typeof exports === 'object' ? exports[name] : undefined;
        if (typeof found === 'function' && !patched.has(name)) {
            patched.add(name);
            patch(found);
        }
    }
    return exports;
};
