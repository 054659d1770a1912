"""A graph of one run: `begin` is called before each compute, to wait for the run's turn and time the stage."""

from collections.abc import Callable, Iterator, Mapping

from service.errors import WispError
from service.guest.wasi_nn import Errno, ExecutionContext, Graph, WasiNnError


class Staged:
    """A Graph that calls `begin` before each compute, in the run's thread.

    A WispError of `begin` or `compute` (run cancelled, time over) becomes a runtime error for the guest.
    """

    def __init__(self, graph: Graph, begin: Callable[[], None] = lambda: None) -> None:
        self._graph, self._begin = graph, begin

    def init_execution_context(self, peers: Mapping[int, ExecutionContext]) -> "StagedContext":
        """A context around one of the graph's own, which finds its peers unwrapped."""
        return StagedContext(self._graph.init_execution_context(Unwrapped(peers)), self._begin)


class StagedContext:
    """A context of `Staged`; `inner` is the graph's own."""

    def __init__(self, inner: ExecutionContext, begin: Callable[[], None]) -> None:
        self.inner, self._begin = inner, begin
        self.set_input, self.get_output, self.close = inner.set_input, inner.get_output, inner.close

    def compute(self) -> None:
        """Call `begin`, then compute."""
        try:
            self._begin()
            self.inner.compute()
        except WispError as error:
            raise WasiNnError(Errno.RUNTIME_ERROR, str(error)) from error


class Unwrapped(Mapping[int, ExecutionContext]):
    """A guest's contexts by handle, without their wrappers. Follows changes."""

    def __init__(self, contexts: Mapping[int, ExecutionContext]) -> None:
        self._contexts = contexts

    def __getitem__(self, handle: int) -> ExecutionContext:
        context = self._contexts[handle]
        inner: ExecutionContext = getattr(context, "inner", context)
        return inner

    def __iter__(self) -> Iterator[int]:
        return iter(self._contexts)

    def __len__(self) -> int:
        return len(self._contexts)
