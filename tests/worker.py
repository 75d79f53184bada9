"""A real thread that does one thing at a time, handed to it: another thread's heap, and yet a deterministic test."""

import queue
import threading


class Worker:
    """A thread with a heap of its own; `do` runs a function on it and waits for the answer."""

    def __init__(self):
        self._tasks, self._answers = queue.SimpleQueue(), queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while (task := self._tasks.get()) is not None:
            function, arguments = task
            try:
                self._answers.put((function(*arguments), None))
            except Exception as error:  # it is raised again where the answer is awaited
                self._answers.put((None, error))
            del task, function, arguments  # or an idle worker would keep caches alive

    def do(self, function, *arguments):
        """Return ``function(*arguments)`` as the worker's thread computes it, or raise what it raised."""
        self._tasks.put((function, arguments))
        answer, error = self._answers.get(timeout=60)
        if error is not None:
            raise error
        return answer

    def end(self):
        """End the thread; its magazines go home."""
        self._tasks.put(None)
        self._thread.join(60)
        assert not self._thread.is_alive()

    def __enter__(self):
        """Return the worker."""
        return self

    def __exit__(self, *_):
        """End the thread."""
        self.end()
