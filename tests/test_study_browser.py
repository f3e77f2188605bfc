"""The study taken in a real browser, headless Chromium: by mouse, finger and keyboard, online and from a file."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from axe_core_python.selenium import Axe
from selenium import webdriver
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from pipeline.cli import main
from pipeline.evaluation.study.answers import Ballot
from pipeline.evaluation.study.ballots import BallotBox
from pipeline.evaluation.study.files import Key, Study
from pipeline.evaluation.study.links import Links
from tests.browser import DESKTOP, PHONE, WAIT_SEC, Page, chromium
from tests.study_data import SECRET, ranks_by, write_inputs, write_study
from tests.study_server import served

pytestmark = pytest.mark.browser

QUALITY = ("real_test", "stackgan", "stage1", "untrained")
MATCH = ("real_test", "stage1", "stackgan", "untrained")


class Site:
    """A served study, and what its raters are expected to answer."""

    def __init__(self, folder: Path, url: str, study: Study, key: Key, box: BallotBox, links: Links):
        self.folder, self.url, self.study, self.key, self.box, self.links = folder, url, study, key, box, links

    def address(self, rater: int, page: str = "ballot") -> str:
        return f"{self.url}/r/{self.links.rater(rater)}/{page}"

    def answers(self, rater: int, slot: int) -> dict[str, dict[str, int]]:
        showing = self.study.showings[rater][slot]
        orders = {"quality": QUALITY, "match": MATCH}
        return {question: dict(ranks_by(order, showing, self.key)) for question, order in orders.items()}

    def num_ballots(self, rater: int) -> int:
        return len(self.study.showings[rater])

    def given(self, rater: int) -> list[Ballot]:
        return [ballot for ballot in self.box.all(self.study.study_id) if ballot.rater == rater]

    def require_all_given(self, rater: int, origin: str) -> None:
        """Check that every ballot of a rater is there with the ranks that were meant."""
        given = self.given(rater)
        assert [ballot.slot for ballot in given] == list(range(self.num_ballots(rater)))
        for ballot in given:
            assert {"quality": ballot.quality, "match": ballot.match} == self.answers(rater, ballot.slot)
            assert ballot.origin == origin and ballot.seconds > 0


@pytest.fixture(scope="module")
def study_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    write_inputs(folder)
    write_study(folder, num_captions=3, num_real_checks=1)
    return folder


@pytest.fixture
def site(study_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    study, key = write_study(study_folder, num_captions=3, num_real_checks=1)
    url = f"sqlite:///{tmp_path / 'ballots.db'}"
    monkeypatch.setenv("STUDY_DATABASE_URL", url)
    monkeypatch.setenv("STUDY_SECRET", SECRET)
    box, links = BallotBox(url), Links(SECRET, study.study_id, lifetime_days=1)
    with served(study, box, links) as address:
        yield Site(study_folder, address, study, key, box, links)
    box.close()


def answer_by_pointer(page: Page, answers: dict[str, dict[str, int]]) -> None:
    """Answer both questions of the ballot that shows by clicks or taps."""
    for question, ranks in answers.items():
        WebDriverWait(page.browser, WAIT_SEC).until(lambda _, name=question: page.question == name)
        for candidate, rank in ranks.items():
            page.click_rank(candidate, rank)
        page.submit()


def take_by_pointer(site: Site, rater: int, size: tuple[int, int]) -> None:
    with chromium(size) as browser:
        page = Page(browser)
        browser.get(site.address(rater, ""))
        page.one("a.button").click()
        for slot in range(site.num_ballots(rater)):
            page.until_shown(f"Ballot {slot + 1} ")
            answer_by_pointer(page, site.answers(rater, slot))
        page.until_shown("thank you")


def take_by_keyboard(site: Site, rater: int) -> None:
    """Take the study without touching a mouse: Tab and Enter open it, a digit ranks, Enter goes on."""
    with chromium() as browser:
        page = Page(browser)
        browser.get(site.address(rater, ""))
        page.one("a.button")
        ActionChains(browser).send_keys(Keys.TAB, Keys.ENTER).perform()
        for slot in range(site.num_ballots(rater)):
            page.until_shown(f"Ballot {slot + 1} ")
            for question, ranks in site.answers(rater, slot).items():
                WebDriverWait(browser, WAIT_SEC).until(lambda _, name=question: page.question == name)
                assert browser.switch_to.active_element.get_attribute("type") == "radio"
                keys = [str(rank) for rank in ranks.values()]  # in the order of the page
                ActionChains(browser).send_keys(*keys, Keys.ENTER).perform()
        page.until_shown("thank you")


def test_several_raters_take_the_whole_study_at_once_by_mouse_finger_and_keyboard(site: Site) -> None:
    with ThreadPoolExecutor(3) as pool:
        jobs = [
            pool.submit(take_by_pointer, site, 0, DESKTOP),
            pool.submit(take_by_pointer, site, 1, PHONE),
            pool.submit(take_by_keyboard, site, 2),
        ]
        for job in jobs:
            job.result()
    for rater in range(3):
        site.require_all_given(rater, "web")


@pytest.mark.slow
def test_letters_can_be_dragged_to_ranks_and_share_one(site: Site) -> None:
    for size in (DESKTOP, PHONE):
        with chromium(size) as browser:
            page = Page(browser)
            browser.get(site.address(0))
            for letter, rank in (("B", 1), ("A", 2), ("C", 2), ("B", 3)):
                drag(page, letter, rank)
            assert page.ranks() == {"A": "2", "B": "3", "C": "2"}
            chips = browser.find_elements(By.CSS_SELECTOR, ".slot[data-value='2'] .chip")
            assert [chip.text for chip in chips] == ["A", "C"]
            page.submit()
            assert page.question == "match" and page.ranks() == dict.fromkeys("ABC")


def drag(page: Page, letter: str, rank: int) -> None:
    chip = page.one(f".chip[data-letter='{letter}']")
    page.scroll_to(chip)
    slot = page.one(f".slot[data-value='{rank}']")
    ActionChains(page.browser).click_and_hold(chip).move_to_element(slot).release().perform()


def test_a_rank_that_is_missing_is_asked_for_and_nothing_is_sent(site: Site) -> None:
    with chromium() as browser:
        page = Page(browser)
        browser.get(site.address(0))
        first, second, _ = site.study.showings[0][0].candidate_ids
        page.click_rank(first, 1)
        page.click_rank(second, 2)
        page.submit()
        assert page.one(".hint").text == "Please rank C too." and page.question == "quality"
        assert site.given(0) == []


def test_a_rater_leaves_comes_back_and_takes_a_ballot_back(site: Site) -> None:
    with chromium() as browser:
        page = Page(browser)
        browser.get(site.address(3))
        answer_by_pointer(page, site.answers(3, 0))
        page.until_shown("Ballot 2 ")
    with chromium(PHONE) as browser:  # on another device
        page = Page(browser)
        browser.get(site.address(3, ""))
        page.until_shown("You have given 1 of")
        page.one("a.button").click()
        page.until_shown("Ballot 2 ")
        page.one(".top button").click()
        page.until_shown("Ballot 1 ")
        assert site.given(3) == []
        answer_by_pointer(page, {"quality": site.answers(3, 0)["match"], "match": site.answers(3, 0)["quality"]})
        page.until_shown("Ballot 2 ")
    (ballot,) = site.given(3)
    assert ballot.quality == site.answers(3, 0)["match"] and ballot.revision == 1


def test_the_first_question_can_be_gone_back_to(site: Site) -> None:
    with chromium() as browser:
        page = Page(browser)
        browser.get(site.address(0))
        answers = site.answers(0, 0)
        for candidate, rank in answers["quality"].items():
            page.click_rank(candidate, rank)
        kept = page.ranks()
        page.submit()
        page.one(".back").click()
        assert page.question == "quality" and page.ranks() == kept


PAGES: dict[str, Callable[[Site, webdriver.Chrome], None]] = {
    "front": lambda site, browser: browser.get(site.url),
    "welcome": lambda site, browser: browser.get(site.address(0, "")),
    "ballot": lambda site, browser: browser.get(site.address(0)),
    "refused": lambda site, browser: browser.get(f"{site.url}/r/nobody/"),
    "admin": lambda site, browser: browser.get(f"{site.url}/admin/{site.links.admin()}/"),
    "offline": lambda site, browser: browser.get(offline_file(site, 0).as_uri()),
}


@pytest.mark.slow
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("name", PAGES)
def test_pages_are_accessible_fit_the_screen_and_need_nothing_from_elsewhere(
    site: Site, name: str, size: tuple[int, int]
) -> None:
    with chromium(size) as browser:
        PAGES[name](site, browser)
        Page(browser).one("h1")
        found = Axe().run(browser)
        violations = [(one["id"], [node["html"][:120] for node in one["nodes"]]) for one in found["violations"]]
        assert violations == []
        # Colours over pictures cannot be computed; nothing else may be left undecided.
        assert {one["id"] for one in found["incomplete"]} <= {"color-contrast"}
        width, needed = browser.execute_script("return [innerWidth, document.documentElement.scrollWidth]")
        assert needed <= width
        loaded = browser.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
        assert all(address.startswith((site.url, "data:")) for address in loaded)
        assert browser.get_log("browser") == [] or name in ("refused", "front")


def test_what_has_the_focus_is_outlined(site: Site) -> None:
    with chromium() as browser:
        browser.get(site.address(0))
        Page(browser).one(".candidate")
        for _ in range(3 + 1):  # sets and the button
            outline = browser.execute_script(
                """const focused = document.activeElement;
                return getComputedStyle(focused.type === "radio" ? focused.nextElementSibling : focused).outlineStyle"""
            )
            assert outline == "solid"
            ActionChains(browser).send_keys(Keys.TAB).perform()


def offline_file(site: Site, rater: int) -> Path:
    """Write a rater's study as one file, by the command."""
    stackgan("study", "offline", "--study", site.folder / "study", "--out", site.folder, "--rater", rater + 1)
    return site.folder / f"rater_{rater + 1}.html"


def stackgan(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["stackgan", *map(str, arguments)])
        main()


@pytest.mark.slow
def test_a_study_from_a_file_saves_ballots_that_can_be_imported(
    site: Site, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rater, saved_dir = 1, tmp_path / "saved"
    saved_dir.mkdir()
    path = offline_file(site, rater)
    with chromium(download_dir=saved_dir) as browser:
        page = Page(browser)
        browser.get(path.as_uri())
        page.one("#start").click()
        for slot in range(2):
            answer_by_pointer(page, site.answers(rater, slot))
            page.until_shown(f"Ballot {slot + 2} ")
        page.one("#undo").click()
        browser.refresh()  # what was given is still there
        page.one("#start").click()
        for slot in range(1, site.num_ballots(rater)):
            page.until_shown(f"Ballot {slot + 1} ")
            answer_by_pointer(page, site.answers(rater, slot))
        page.until_shown("thank you")
        page.one("#save").click()
        WebDriverWait(browser, WAIT_SEC).until(lambda _: list(saved_dir.glob("*.json")))
    (saved,) = saved_dir.glob("*.json")
    capsys.readouterr()
    for _ in range(2):  # a second time changes nothing
        stackgan("study", "import", "--study", site.folder / "study", saved)
        assert f"{site.num_ballots(rater)} ballots of rater 2" in capsys.readouterr().out
        site.require_all_given(rater, "offline")
