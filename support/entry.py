"""How every script begins and ends: one line for a user's mistake, Ctrl-C, SIGTERM or a closed output.

    if __name__ == "__main__":  # before the slow imports
        from support import entry

        entry.prepare(__file__, "data.py")  # the files whose constants are the script's flags
    ...
    if __name__ == "__main__":
        entry.cli(main)

This module imports nothing that takes time: until `prepare` has been called, Ctrl-C is a traceback.
"""

if __name__ == "__main__":
    raise SystemExit("support/entry.py is a module, not a script: every script uses it")

import _signal as signal  # built in; the module `signal` takes ten times as long to load as this one
import os
import sys

interrupted = False  # whether Ctrl-C has been pressed, or SIGTERM has come


def prepare(*paths):
    """Prepare the process. With paths, the files in which its settings are: answer --help and wrong flags now.

    The scripts' settings are parsed again by `main`, with the values that the imported modules have.
    """
    for number, default in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) == default:  # else ignored, as Ctrl-C is in the background of a shell
            signal.signal(number, leave)
    sys.unraisablehook = report_unraisable
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed, as by >&- in a shell
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115
    if paths:
        from support import settings

        one_line(lambda: settings.parse_early(*paths))


def cli(main):
    """Call `main`. A user's mistake ends in one line on stderr and exit code 1 or 2; Ctrl-C or SIGTERM in one and 130."""

    def job():
        try:
            on_interrupt(interrupt)
            main()
            check_interrupt()
        finally:
            on_interrupt(signal.SIG_IGN)  # nothing is left to interrupt

    one_line(job)


def on_interrupt(handler):
    """Set what Ctrl-C and SIGTERM do, where `prepare` has set it before."""
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) in (leave, interrupt):
            signal.signal(number, handler)


def leave(*ignored):
    """Ctrl-C during the imports, some of which would turn an exception into another one; or a second Ctrl-C."""
    try:
        os.write(2, b"\ninterrupted\n")
    finally:
        os._exit(130)


def interrupt(*ignored):
    """Ctrl-C in `main`: the first one unwinds the stack, so that half-written files are removed."""
    global interrupted
    if interrupted:
        leave()
    interrupted = True
    raise KeyboardInterrupt


def check_interrupt():
    """Raise KeyboardInterrupt again if one was lost, as in a callback from C code, where Python drops exceptions."""
    if interrupted:
        raise KeyboardInterrupt


def report_unraisable(unraisable):
    """Python's report of an exception that it has to drop, except for KeyboardInterrupt: see `check_interrupt`."""
    if not issubclass(unraisable.exc_type, KeyboardInterrupt):
        sys.__unraisablehook__(unraisable)


def one_line(function):
    """Call the function; end the process for what is not a bug, with one line on stderr and an exit code."""
    try:
        try:
            function()
        finally:  # here, since Python reports a failure at its end as an ignored exception
            write(sys.stderr)
            print(end="", flush=True)
    except KeyboardInterrupt as error:
        end(130, f"\ninterrupted{error}")
    except BrokenPipeError:  # the reader of the output, such as head, has closed it
        end(1)
    except Exception as error:
        if interrupted:  # C code has turned KeyboardInterrupt into another exception
            end(130, "\ninterrupted")
        out_of_memory = (isinstance(error, MemoryError)
                         or type(error).__name__ == "OutOfMemoryError"  # torch's, on a GPU
                         or "DefaultCPUAllocator: can't allocate memory" in str(error))  # torch's RuntimeError  # fmt: skip
        if not (hasattr(error, "exit_code") or isinstance(error, OSError) or out_of_memory):
            raise
        message = str(error).strip().splitlines() or ["not enough memory"]
        if isinstance(error, OSError) and error.filename is None and not write(sys.stdout, "\n"):
            message = [f"cannot write to the standard output: {error.strerror}"]
        end(getattr(error, "exit_code", 1), f"{os.path.basename(sys.argv[0])}: {message[0]}")


def end(code, message=""):
    """Exit with the code, after the message on stderr."""
    write(sys.stdout)
    write(sys.stderr, message + "\n" if message else "")
    sys.exit(code)


def write(stream, text=""):
    """Write the text and what the stream still holds, or else drop all that follows; whether it could be written."""
    try:
        print(text, end="", file=stream, flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return False
    return True
