"""Where the runs of studies are executed: processes of this machine, or the workers of a Dask cluster, through joblib."""

if __name__ == "__main__":
    raise SystemExit("studies/workers.py is a module, not a script: experiments.py uses it")

import contextlib
import os
import pickle
import re
import signal
import threading
import time
import warnings
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from studies.execute import RUNNING, execute
from studies.versions import code_digest
from support import files, settings

DIED = {"error": "its process died, perhaps for lack of memory"}


class Processes:
    """`number` processes of this machine; a single one is this process itself."""

    def __init__(self, number):
        self.number = number

    def run(self, jobs, folder):
        """Yield (key, row) of each job in the order in which they end; folder: that of the store.

        A process that dies takes the others with it: all runs that they were busy with get an "error", and the remaining
        ones go on in new processes.
        """
        waiting = {job.key: job for job in jobs}
        while waiting:
            try:
                calls = [(keyed, (job, str(folder)), {}) for job in waiting.values()]
                for key, row in parallel(calls, self.number, initializer=start_process):
                    del waiting[key]
                    yield key, row
            except BrokenProcessPool:
                busy = [key for key in waiting if Path(folder, RUNNING, key).exists()]
                for key in busy or list(waiting):
                    del waiting[key]
                    yield key, DIED

    def close(self):
        """Nothing to do: joblib ends its processes."""


class DaskWorkers:
    """The workers of the Dask scheduler at an address. They see the files of this machine at the same paths.

    Raises settings.SettingError for what is no address, and files.FileError where there is no scheduler, and for workers
    that would give other results.
    """

    def __init__(self, address):
        if not re.fullmatch(r"(\w+://)?\S+:\d+/?", address):
            raise settings.SettingError(f"--dask {address}: expected the address of a scheduler, as in tcp://127.0.0.1:8786")
        try:
            from distributed import Client
        except ImportError:
            raise files.FileError("--dask: needs another package: pip install distributed") from None
        try:
            self.client = Client(address, timeout="10s", set_as_default=False)
        except (OSError, ValueError) as error:
            raise files.FileError(f"--dask {address}: no scheduler answers there ({error})") from None
        try:
            self.check(address)
        except BaseException:
            self.close()
            raise
        self.number = len(self.client.nthreads())

    def check(self, address, seconds=30):
        """Raise files.FileError without workers, and for workers with several threads, without this code or with other."""
        try:
            self.client.wait_for_workers(1, timeout=seconds)
        except TimeoutError:
            raise files.FileError(f"--dask {address}: the scheduler has had no worker for {seconds} seconds") from None
        start = "start them in this folder, with PYTHONPATH=. and --nthreads 1"
        if max(self.client.nthreads().values()) > 1:  # random numbers and PyTorch's threads belong to a whole process
            raise files.FileError(f"--dask {address}: a worker has several threads; {start}")
        try:
            digests = set(self.client.run(code_digest).values())
        except Exception as error:
            raise files.FileError(f"--dask {address}: the workers cannot import this project ({error}); {start}") from None
        if digests != {code_digest()}:
            raise files.FileError(f"--dask {address}: the workers have another version of this project; {start}")

    def run(self, jobs, folder):
        """As Processes.run; a worker that dies costs its own run only."""
        import joblib

        with joblib.parallel_config(backend=dask_backend(self.client)):
            calls = [(remote_call(), (job.key, pickle.dumps((job, str(folder)))), {}) for job in jobs]
            yield from parallel(calls, -1)

    def close(self):
        self.client.close()


def dask_backend(client):
    """joblib's Dask backend, with two changes.

    A run whose worker has died gets a row, where joblib would wait for it forever. A single worker is used, where joblib
    would run everything in this process.
    """
    from joblib._dask import DaskDistributedBackend

    class Backend(DaskDistributedBackend):
        def effective_n_jobs(self, n_jobs):
            return max(2, super().effective_n_jobs(n_jobs))

        def submit(self, func, callback=None):
            future = super().submit(func, callback)
            ((_, (key, _), _),) = func.items

            def on_end(ended):
                if error := ended.exception():
                    died = type(error).__name__ == "KilledWorker"
                    callback([(key, DIED if died else {"error": f"{type(error).__name__}: {error}".splitlines()[0]})])

            future.add_done_callback(on_end)
            return future

    return Backend(client=client)


def remote_call():
    """A function that the scheduler can read without this project, of which only the workers have a copy."""

    def call(key, pickled):
        import pickle

        from studies.workers import keyed

        return keyed(*pickle.loads(pickled))

    return call  # a function inside another is sent as code, not as a name


def parallel(calls, number, **options):
    """Yield the results of calls (function, arguments, {}), which joblib makes in `number` processes, as they end."""
    import joblib

    warnings.filterwarnings("ignore", "A worker stopped while some jobs", UserWarning)  # joblib replaces one that has grown
    pool = joblib.Parallel(number, return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs", max_nbytes=None,
                           **options)  # fmt: skip
    with contextlib.closing(pool(calls)) as results:
        yield from results


def keyed(job, folder):
    return job.key, execute(job, folder)


def start_process():
    """Prepare a process of `Processes`: it ends with the first process, even if that is killed, and says nothing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process of a terminal; the first one ends the others
    tqdm.set_lock(threading.RLock())  # not a semaphore, about which a message appears when the process is killed
    parent = os.getppid()

    def watch():
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
