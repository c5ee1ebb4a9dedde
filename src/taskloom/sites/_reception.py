"""What the transports with real sites have in common: sites that fail, that are refused for ever, that all wait."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from taskloom.sites._messages import Answer, Update
from taskloom.sites._session import Session
from taskloom.tasks import FitError, OptionError

# A site whose messages are refused so many times in a row will not do better.
MOST_REFUSALS = 10


class Reception:
    """Stands between the lines to the sites and the session: one thread's.

    Args:
        session: of the run.
        clock: gives seconds from any beginning; the session's clock begins at 0.
    """

    def __init__(self, session: Session, clock: Callable[[], float]) -> None:
        self.session, self._clock, self._began = session, clock, clock()
        self._waiting: set[str] = set()
        self._refusals: Counter[str] = Counter()
        # Those that have ended, or are refused: others that have failed were but silent.
        self._ended: set[str] = set()

    def handle(self, messages: Sequence[Update]) -> list[Answer]:
        """All that has come goes in at once; out come the answers that can be given now.

        A site that has failed is heard again when it joins anew; one that was only silent, with whatever it says.
        """
        session = self.session
        for message in messages:
            if message.sequence == 0 or message.site not in self._ended:
                self._take_back(message.site)
        heard = [message for message in messages if message.site not in session.failed]
        self._waiting.update(message.site for message in heard if message.intercepts is None)
        answers = session.handle(heard, self._clock() - self._began)
        # Their first or last words were refused, which they would but repeat.
        self._ended.update(message.site for message in heard if message.site in session.failed)
        self._waiting.difference_update(answer.site for answer in answers)
        return [answer for answer in answers if self._is_worth_sending(answer)]

    def fail(self, name: str, reason: str) -> None:
        """A site has ended with an error."""
        self._waiting.discard(name)
        self._ended.add(name)
        self.session.fail(name, reason)

    def is_waiting(self, name: str) -> bool:
        """Whether a site is owed an answer."""
        return name in self._waiting

    def has_ended(self, name: str) -> bool:
        """Whether nothing more is to come from a site."""
        return self.session.has_ended(name)

    def check(self) -> None:
        """Find out whether the run stands still.

        Raises:
            FitError: sites have failed, and none is left or all others wait for them.
        """
        failed = self.session.failed
        if not failed or self.session.is_over:
            return
        living = self.session.coordinator.sites.keys() - failed.keys()
        said = "; ".join(f"site {name} failed: {reason}" for name, reason in failed.items())
        if not living:
            raise FitError(f"no site is left; {said}")
        if living <= self._waiting:
            raise FitError(f"{said}; all others wait for it. Mend it or leave it out, or take an asynchronous method")

    def _take_back(self, name: str) -> None:
        self._ended.discard(name)
        # A run that has ended without a site has ended without it.
        if self.session.failed.pop(name, None) is not None and not self.session.is_over:
            self.session.coordinator.lost.discard(name)

    def _is_worth_sending(self, answer: Answer) -> bool:
        self._refusals[answer.site] = self._refusals[answer.site] + 1 if answer.refusal else 0
        if self._refusals[answer.site] < MOST_REFUSALS:
            return True
        self._refusals[answer.site] = 0
        self.fail(answer.site, f"refused {MOST_REFUSALS} times in a row: {answer.refusal}")
        return False


def check_names(session: Session, given: Iterable[str], *, may_lack: bool = False) -> None:
    """Whether sites can be made of all names of a run, and of no others.

    Args:
        session: of the run.
        given: names of the sites that can be made.
        may_lack: whether others may come from elsewhere.

    Raises:
        OptionError: a name too many or too few.
    """
    given, wanted = list(given), session.coordinator.sites
    for name in given:
        if name not in wanted:
            raise OptionError(f"`make_sites`: {name!r} is none of this run's sites; known are {', '.join(wanted)}")
    lacking = [name for name in wanted if name not in given]
    if lacking and not may_lack:
        raise OptionError(
            f"`make_sites` has no site {lacking[0]!r}; give it, or, for a site that is started elsewhere, "
            "ProcessesTransport with `address` and `authkey`"
        )


def describe(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}"
