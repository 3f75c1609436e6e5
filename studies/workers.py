"""Where the runs of studies are executed: processes of this machine, or the workers of a Dask cluster, through joblib."""

import contextlib
import os
import signal
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

from tqdm import tqdm

from studies.execute import RUNNING, execute
from studies.versions import code_digest
from support import files

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
                for key, row in parallel(list(waiting.values()), folder, self.number, initializer=start_process):
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

    Raises files.FileError where there is no scheduler, and for workers that would give other results.
    """

    def __init__(self, address):
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
            yield from parallel(jobs, folder, -1)

    def close(self):
        self.client.close()


def dask_backend(client):
    """joblib's Dask backend, but with a row for a run whose worker has died: joblib would wait for it forever."""
    from joblib._dask import DaskDistributedBackend

    class Backend(DaskDistributedBackend):
        def submit(self, func, callback=None):
            future = super().submit(func, callback)
            ((_, (job, _), _),) = func.items

            def on_end(ended):
                if ended.exception():
                    callback([(job.key, DIED)])

            future.add_done_callback(on_end)
            return future

    return Backend(client=client)


def parallel(jobs, folder, number, **options):
    """Yield (key, row) of the jobs, which joblib executes in `number` processes, in the order in which they end."""
    import joblib

    pool = joblib.Parallel(number, return_as="generator_unordered", batch_size=1, pre_dispatch="n_jobs", max_nbytes=None,
                           **options)  # fmt: skip
    with contextlib.closing(pool(joblib.delayed(keyed)(job, str(folder)) for job in jobs)) as results:
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
