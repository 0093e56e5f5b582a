"""The report in headless Chromium: it draws, sorts, answers the mouse and the keyboard, and fits."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from search.pages.page import BLUE, PAPER, TEXT
from tests.support import browser
from tests.support.browser import DESKTOP_PX, PHONE_PX, complaints, drawn, prefer, scroll_to, show, until

reason = browser.missing()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

N_SHOWN = 20


@pytest.fixture(scope="module")
def driver() -> Iterator[Any]:
    with browser.chromium() as started:
        yield started


@pytest.mark.parametrize("size_px", [DESKTOP_PX, PHONE_PX])
def test_every_plot_is_drawn_without_a_complaint_and_nothing_is_wider_than_the_screen(
    size_px: tuple[int, int], driver: Any, report_file: Path
) -> None:
    show(driver, report_file, size_px)
    figures = driver.execute_script("return [...document.querySelectorAll('.plot')].map(p => p.dataset.figure)")
    assert len(figures) == 15
    for figure in figures:
        drawn(driver, figure)
    assert complaints(driver) == []
    assert driver.title != "owned"
    assert driver.execute_script("return document.documentElement.scrollWidth") <= size_px[0]
    widths = driver.execute_script(
        "return [...document.querySelectorAll('.plot:not(.wide)')].map(p => p.getBoundingClientRect().right)"
    )
    assert max(widths) <= size_px[0]


def test_on_a_telephone_the_winner_s_values_are_in_sight(driver: Any, report_file: Path) -> None:
    show(driver, report_file, PHONE_PX)
    rights = driver.execute_script(
        "return [...document.querySelectorAll('#winner td strong')].map((value) => value.getBoundingClientRect().right)"
    )
    assert len(rights) > 5
    assert max(rights) < PHONE_PX[0]


def test_plots_wait_until_they_are_near(driver: Any, report_file: Path) -> None:
    show(driver, report_file)
    until(driver, "return document.querySelector('#plot-curves').dataset.drawn || document.readyState === 'complete'")
    assert not driver.execute_script("return document.querySelector('#plot-confusion').dataset.drawn")


def test_headings_sort_by_mouse_and_keyboard_and_say_so(driver: Any, report_file: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    show(driver, report_file)
    button = _heading(driver, "accuracy")
    button.click()
    values = _column(driver, "accuracy")
    numbers = [float(value.rstrip("%")) for value in values if value != "–"]
    assert len(values) == N_SHOWN
    assert numbers == sorted(numbers, reverse=True), "the best first"
    assert button.find_element("xpath", "..").get_attribute("aria-sort") == "descending"
    button.send_keys(Keys.ENTER)
    numbers = [float(value.rstrip("%")) for value in _column(driver, "accuracy") if value != "–"]
    assert numbers == sorted(numbers)
    assert button.find_element("xpath", "..").get_attribute("aria-sort") == "ascending"
    said = driver.execute_script("return document.getElementById('said').textContent")
    assert said == "Sorted by accuracy, ascending"
    _heading(driver, "replicates").click()
    fresh = _column(driver, "replicates")
    known = [value for value in fresh if value != "–"]
    assert fresh == [*known, *["–"] * (N_SHOWN - len(known))], "what has no value comes last"
    _heading(driver, "replicates").click()
    assert _column(driver, "replicates")[-1] == "–"
    _heading(driver, "rank").click()
    assert _column(driver, "rank") == [str(i) for i in range(1, N_SHOWN + 1)]


def test_hovering_over_a_point_says_what_it_is(driver: Any, report_file: Path) -> None:
    from selenium.webdriver import ActionChains

    show(driver, report_file)
    drawn(driver, "history")
    place = driver.execute_script(
        """
        const plot = document.querySelector('#plot-history'), box = plot.getBoundingClientRect();
        const {xaxis, yaxis} = plot._fullLayout, winner = plot.data.find((trace) => trace.name === 'winner');
        return [xaxis._offset + xaxis.d2p(winner.x[0]) - box.width / 2,
                yaxis._offset + yaxis.d2p(winner.y[0]) - box.height / 2];
        """
    )
    plot = driver.find_element("css selector", "#plot-history")
    ActionChains(driver).move_to_element_with_offset(plot, *(round(pixel) for pixel in place)).perform()
    text = until(driver, "return document.querySelector('#plot-history .hoverlayer').textContent")
    assert "epochs: " in text
    assert "winner" in text


def test_the_cells_of_the_confusion_matrix_show_their_images(driver: Any, report_file: Path) -> None:
    show(driver, report_file)
    drawn(driver, "confusion")
    counts, texts = driver.execute_script(
        """
        const plot = document.querySelector('#plot-confusion');
        const texts = [...plot.querySelectorAll('.heatmap-label text')].map((text) => text.textContent);
        return [plot.data[0].customdata.flat(), texts];
        """
    )
    assert sum(counts) > 0
    assert 0 in counts
    assert sorted(texts) == sorted(map(str, counts)), "zeros too"


def test_arrow_keys_walk_from_point_to_point_and_it_is_said_aloud(driver: Any, report_file: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    show(driver, report_file)
    drawn(driver, "curves")
    plot = driver.find_element("css selector", "#plot-curves")
    driver.execute_script("arguments[0].focus({preventScroll: true})", plot)
    said = "return document.getElementById('said').textContent"
    plot.send_keys(Keys.ARROW_RIGHT)
    until(driver, f"{said}.includes('epoch 1:')")
    first = driver.execute_script(said)
    assert "winner" in first
    plot.send_keys(Keys.ARROW_RIGHT)
    until(driver, f"{said}.includes('epoch 2:')")
    assert _trial(driver.execute_script(said)) == _trial(first)
    plot.send_keys(Keys.ARROW_DOWN)
    until(driver, f"{said}.includes('baseline') || {said.removeprefix('return ')}.includes('completed')")
    assert _trial(driver.execute_script(said)) != _trial(first)
    assert complaints(driver) == []


def test_the_legend_hides_and_shows(driver: Any, report_file: Path) -> None:
    show(driver, report_file)
    drawn(driver, "curves")
    stopped = driver.find_element("css selector", "[data-keys='curves'] button")
    assert stopped.text.split()[:2] == ["━━○", "stopped"]
    visible = "return document.querySelector('#plot-curves').data[0].visible"
    assert driver.execute_script(visible) is True
    stopped.click()
    assert stopped.get_attribute("aria-pressed") == "false"
    assert until(driver, visible.replace("return ", "return !")) is True
    prefer(driver, "dark")
    until(driver, f"return document.querySelector('#plot-curves')._fullLayout.paper_bgcolor === '{PAPER.dark}'")
    assert driver.execute_script(visible) is False, "it stays hidden when the page is drawn anew"


def test_dark_mode_is_dark_plots_too_and_can_be_changed_at_any_time(driver: Any, report_file: Path) -> None:
    show(driver, report_file, scheme="dark")
    drawn(driver, "history")
    assert _style(driver, "body", "background-color") == _rgb(PAPER.dark)
    assert _style(driver, "body", "color") == _rgb(TEXT.dark)
    background = "return document.querySelector('#plot-history')._fullLayout.paper_bgcolor"
    best = "return document.querySelector('#plot-history').data.find((t) => t.name.startsWith('best')).line.color"
    assert driver.execute_script(background) == PAPER.dark
    assert driver.execute_script(best) == BLUE.dark
    prefer(driver, "light")
    until(driver, f"{background} === '{PAPER.light}'")
    assert driver.execute_script(best) == BLUE.light
    assert _style(driver, "body", "background-color") == _rgb(PAPER.light)


def test_the_keyboard_reaches_everything_in_order(driver: Any, report_file: Path) -> None:
    from selenium.webdriver.common.keys import Keys

    show(driver, report_file)
    driver.find_element("tag name", "body").send_keys(Keys.TAB)
    assert driver.switch_to.active_element.get_attribute("class") == "skip"
    reached = set()
    for _ in range(80):
        driver.switch_to.active_element.send_keys(Keys.TAB)
        element = driver.switch_to.active_element
        reached.add(element.tag_name)
        if element.get_attribute("id") == "plot-curves":
            break
    assert element.get_attribute("id") == "plot-curves"
    assert {"a", "button", "div"} <= reached


def test_nothing_is_asked_of_any_network(driver: Any, report_file: Path) -> None:
    show(driver, report_file)
    drawn(driver, "parallel")
    names = driver.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [name for name in names if not name.startswith("data:")] == []


def test_scripts_from_a_folder_could_not_run_even_if_they_were_put_in(driver: Any, report_file: Path) -> None:
    html = report_file.read_text().replace("</main>", "<script>document.title = 'owned'</script></main>")
    altered = report_file.with_name("altered.html")
    altered.write_text(html, encoding="utf-8")
    show(driver, altered)
    scroll_to(driver, "footer")
    assert driver.title != "owned"
    assert any("Content Security Policy" in line for line in complaints(driver))


def _heading(driver: Any, name: str) -> Any:
    return driver.find_element("xpath", f"//table[@id='trials']//th/button[normalize-space()='{name}']")


def _column(driver: Any, name: str) -> list[str]:
    texts: list[str] = driver.execute_script(
        """
        const table = document.querySelector('#trials');
        const place = [...table.tHead.rows[0].cells].findIndex((cell) => cell.textContent.trim() === arguments[0]);
        return [...table.tBodies[0].rows].map((row) => row.cells[place].textContent);
        """,
        name,
    )
    return texts


def _trial(said: str) -> str:
    found = re.search(r"trial \d+", said)
    assert found is not None, said
    return found[0]


def _style(driver: Any, selector: str, name: str) -> str:
    found: str = driver.execute_script(
        "return getComputedStyle(document.querySelector(arguments[0]))[arguments[1]]", selector, name
    )
    return found


def _rgb(colour: str) -> str:
    return f"rgb({', '.join(str(int(colour[i : i + 2], 16)) for i in (1, 3, 5))})"
