"""The page in a real browser, as people use it. Chromium is Debian's: apt-get install chromium."""

import base64
import hashlib
import json
import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Response, Route, expect, sync_playwright

from pipeline.config import ServeConfig
from pipeline.serving.desk import Desk
from pipeline.serving.gate import Key
from tests.serving.conftest import Served

CHROMIUM = shutil.which("chromium")
SEARCH = "**/v1/search"
ROW = 7  # of the demo; a PNG
HOSTILE = "<img src=x onerror=\"document.title='run'\"><script>document.title='run'</script>"
MINUS = "\N{MINUS SIGN}"
NARROW = {"width": 390, "height": 800}
CLIPBOARD = ["clipboard-read", "clipboard-write"]
TAKE_FILE = """([base64, name, type]) => {
    const transfer = new DataTransfer();
    transfer.items.add(new File([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], name, { type }));
    return transfer;
}"""
COPY_PICTURE = """async (base64) => {
    const picture = new Blob([Uint8Array.from(atob(base64), (c) => c.charCodeAt(0))], { type: "image/png" });
    await navigator.clipboard.write([new ClipboardItem({ "image/png": picture })]);
}"""
IDS = """(images) => images.map((image) => decodeURIComponent(image.src.match(/rows\\/(.*)\\/thumbnail/)[1]))"""
Open = Callable[..., Page]

# Where nobody may install it; .ci/run does, and there its absence is a failure.
pytestmark = pytest.mark.skipif(
    CHROMIUM is None and not os.environ.get("CI"), reason="wants Chromium: apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:  # in containers Chromium's own sandbox has no rights
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(browser: Browser, endpoint: Served) -> Iterator[Open]:
    """Open pages; none may complain, but of requests that shall be refused, or ask anybody but the endpoint."""
    complaints: list[str] = []
    elsewhere: list[str] = []

    def open_page(address: str = "/", *, refused: str = "nothing", site: str = endpoint.url, **options: object) -> Page:
        def said(message: ConsoleMessage) -> None:
            if message.type in ("error", "warning") and refused not in message.location["url"]:
                complaints.append(message.text)

        own = (f"{site}/", f"{re.sub('//.*@', '//', site)}/", "blob:", "data:")
        context = stack.enter_context(browser.new_context(**options))
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.on("console", said)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(own) else elsewhere.append(request.url))
        page.goto(site + address)
        expect(page.locator("#facts")).not_to_be_empty()
        return page

    with ExitStack() as stack:
        yield open_page
    assert (complaints, elsewhere) == ([], [])


def answer_to(page: Page, act: Callable[[], object]) -> Response:
    """Wait until a search that something starts is answered and shown."""
    with page.expect_response(SEARCH) as answer:
        act()
    page.locator("#results[aria-busy=false]").wait_for(state="attached")
    return answer.value


def ask(page: Page, text: str) -> Response:
    page.fill("#text", text)
    return answer_to(page, lambda: page.press("#text", "Enter"))


def choose(page: Page, encoded: bytes) -> Response:
    picture = {"name": "mine.png", "mimeType": "image/png", "buffer": encoded}
    return answer_to(page, lambda: page.set_input_files("#file", picture))


def follow(page: Page, address: str) -> Response:
    return answer_to(page, lambda: page.goto(address))


def shown(page: Page) -> list[str]:
    return page.locator("#results img").evaluate_all(IDS)


def found(endpoint: Served, *query: dict, **options: object) -> list[str]:
    """What the API answers when asked without a page."""
    reply = endpoint.client.post("/v1/search", json={"query": query, **options})
    assert reply.status_code == 200, reply.text
    return [hit["id"] for hit in reply.json()["hits"]]


def is_scrollable_sideways(page: Page) -> bool:
    return page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth")


def test_words_find_what_the_api_finds(opened: Open, endpoint: Served):
    page = opened()
    hits = ask(page, "a red circle").json()["hits"]
    assert shown(page) == found(endpoint, {"text": "a red circle"}) == [hit["id"] for hit in hits]
    assert page.locator(".score").all_text_contents() == [
        page.evaluate("(score) => score.toFixed(3)", hit["score"]) for hit in hits
    ]
    assert page.locator(".caption").all_text_contents() == [hit["columns"]["caption"] for hit in hits]
    expect(page.locator("#said")).to_have_text("20 pictures")
    expect(page.locator("#welcome")).to_be_hidden()
    assert page.title() == "a red circle · rayclip"


def test_the_footer_names_time_index_size_and_model(opened: Open, endpoint: Served):
    page = opened()
    ask(page, "a star")
    (table,) = endpoint.client.get("/v1/info").json()["tables"]
    index = f"index {table['table']}/{table['index_version']}"
    time, *others = page.inner_text("#facts").split(" · ")
    assert re.fullmatch(r"\d+ ms, \d+ of them at the server", time)
    assert others == [index, f"{table['ntotal']} pictures", table["model_id"]]


def test_a_picture_is_shown_in_its_own_proportions(opened: Open, demo_rows: list[dict]):
    page = opened()
    ask(page, "a star")
    wide, high = page.locator("#results img").first.evaluate(
        "async (image) => { await image.decode(); return [image.naturalWidth, image.naturalHeight]; }"
    )
    (row,) = (row for row in demo_rows if row["key"] == shown(page)[0])
    scale = max(wide, high) / max(row["width"], row["height"])
    assert (wide, high) == pytest.approx((row["width"] * scale, row["height"] * scale), abs=1)


def test_a_chosen_picture_finds_itself(opened: Open, demo_rows: list[dict]):
    page = opened()
    choose(page, demo_rows[ROW]["image"])
    assert shown(page)[0] == demo_rows[ROW]["key"]
    expect(page.locator("#terms li")).to_have_text(["mine.png✕"])
    assert page.url.endswith("/#")  # an address holds no picture


def test_a_dropped_picture_finds_itself(opened: Open, demo_rows: list[dict]):
    page = opened()
    encoded = base64.b64encode(demo_rows[ROW]["image"]).decode()
    transfer = page.evaluate_handle(TAKE_FILE, [encoded, "mine.png", "image/png"])
    page.dispatch_event("main", "dragover", {"dataTransfer": transfer})
    expect(page.locator("body")).to_have_class("dropping")
    answer_to(page, lambda: page.dispatch_event("main", "drop", {"dataTransfer": transfer}))
    assert shown(page)[0] == demo_rows[ROW]["key"]
    expect(page.locator("body")).not_to_have_class("dropping")


def test_a_dropped_file_of_another_kind_is_refused(opened: Open):
    page = opened()
    transfer = page.evaluate_handle(TAKE_FILE, ["YQ==", "a.txt", "text/plain"])
    page.dispatch_event("main", "drop", {"dataTransfer": transfer})
    expect(page.locator("#advice")).to_have_text("That was no picture. Drop the file of a picture.")


def test_a_pasted_picture_finds_itself(opened: Open, demo_rows: list[dict]):
    page = opened(permissions=CLIPBOARD)
    encoded = base64.b64encode(demo_rows[ROW]["image"]).decode()
    page.evaluate(COPY_PICTURE, encoded)
    answer_to(page, lambda: page.press("#text", "Control+v"))
    assert shown(page)[0] == demo_rows[ROW]["key"]


def test_text_that_comes_with_a_picture_is_pasted_as_text(opened: Open):
    page = opened()
    transfer = page.evaluate_handle(TAKE_FILE, ["YQ==", "a.png", "image/png"])
    transfer.evaluate("(transfer) => transfer.setData('text/plain', 'cells')")
    paste = (
        "(clipboardData) => document.dispatchEvent(new ClipboardEvent('paste', { clipboardData, cancelable: true }))"
    )
    assert page.evaluate(paste, transfer)  # it is left to the browser


def test_more_like_this_finds_what_is_near_a_result(opened: Open, endpoint: Served):
    page = opened()
    ask(page, "a blue ring")
    third = shown(page)[2]
    answer_to(page, lambda: page.locator(".like").nth(2).click())
    assert shown(page) == found(endpoint, {"id": third})
    assert third not in shown(page)
    assert page.input_value("#text") == ""


def test_a_result_opens_with_its_columns_and_leads_on(opened: Open, endpoint: Served, demo_rows: list[dict]):
    page = opened()
    ask(page, "a blue ring")
    first = shown(page)[0]
    (row,) = (row for row in demo_rows if row["key"] == first)
    page.locator(".picture").first.click()
    assert page.locator("#detail-title").inner_text() == row["caption"]
    columns = dict(zip(*(page.locator(f"#detail {tag}").all_text_contents() for tag in ("dt", "dd")), strict=True))
    assert float(columns.pop("score")) > 0
    assert columns == {"id": first, "caption": row["caption"], "colour": row["colour"]}
    page.get_by_role("button", name="Close").click()
    expect(page.locator("#detail")).to_be_hidden()
    page.locator(".picture").first.click()
    answer_to(page, lambda: page.click("#detail-more"))
    expect(page.locator("#detail")).to_be_hidden()
    assert shown(page) == found(endpoint, {"id": first})


def test_results_are_added_and_subtracted(opened: Open, endpoint: Served):
    page = opened()
    ask(page, "a green shape")
    words, plus = {"text": "a green shape"}, {"id": shown(page)[1]}
    answer_to(page, lambda: page.locator(".plus").nth(1).click())
    assert shown(page) == found(endpoint, words, plus)
    minus = {"id": shown(page)[3], "weight": -1}
    answer_to(page, lambda: page.locator(".minus").nth(3).click())
    assert shown(page) == found(endpoint, words, plus, minus)
    signs = [text[0] for text in page.locator("#terms li").all_text_contents()]
    assert signs == ["+", MINUS]
    answer_to(page, lambda: page.get_by_role("button", name="Remove").first.click())
    assert shown(page) == found(endpoint, words, minus)


def test_a_filter_lets_only_rows_that_meet_it_come_up(opened: Open, endpoint: Served):
    page = opened()
    ask(page, "a star")
    page.click("summary")
    page.select_option("#column", "colour")
    page.fill("#value", "pink")
    answer_to(page, lambda: page.press("#value", "Enter"))
    wanted = {"column": "colour", "eq": "pink"}
    assert shown(page) == found(endpoint, {"text": "a star"}, filter=wanted)
    assert all("pink" in caption for caption in page.locator(".caption").all_text_contents())
    answer_to(page, lambda: page.select_option("#operator", "ne"))
    assert shown(page) == found(endpoint, {"text": "a star"}, filter={"column": "colour", "ne": "pink"})


def test_no_result_is_below_the_minimum_score(opened: Open, endpoint: Served):
    page = opened()
    scores = [hit["score"] for hit in ask(page, "a star").json()["hits"]]
    least = round((scores[0] + scores[-1]) / 2, 2)
    page.click("summary")
    answer_to(page, lambda: page.fill("#score", str(least)))
    expect(page.locator("#score-shown")).to_have_text(f"{least:.2f}")
    assert shown(page) == found(endpoint, {"text": "a star"}, min_score=least)
    assert 0 < len(shown(page)) < len(scores)


def test_near_duplicates_can_be_hidden(opened: Open, endpoint: Served):
    page = opened()
    ask(page, "a small circle")
    before = shown(page)
    page.click("summary")
    answer_to(page, lambda: page.check("#near"))
    assert shown(page) == found(endpoint, {"text": "a small circle"}, dedup="near") != before


def test_more_results_follow_those_that_are_shown(opened: Open, endpoint: Served):
    page = opened()
    ask(page, "a star")
    answer_to(page, lambda: page.click("#more"))
    assert shown(page) == found(endpoint, {"text": "a star"}, k=40)
    expect(page.locator("#results li").nth(20).locator(".picture")).to_be_focused()


def test_an_address_is_a_search(opened: Open):
    page = opened()
    ask(page, "a green & blue shape")
    answer_to(page, lambda: page.locator(".minus").nth(2).click())
    page.click("summary")
    page.select_option("#column", "colour")
    page.fill("#value", "green")
    answer_to(page, lambda: page.press("#value", "Enter"))
    answer_to(page, lambda: page.fill("#score", "0.1"))
    answer_to(page, lambda: page.check("#near"))
    answer_to(page, lambda: page.select_option("#k", "50"))
    other = opened()
    follow(other, page.url)
    assert shown(other) == shown(page) != []
    for control in ("#text", "#column", "#operator", "#value", "#score", "#k"):
        assert other.input_value(control) == page.input_value(control)
    assert other.is_checked("#near")
    expect(other.locator("#value")).to_be_visible()  # what narrows a search is not hidden


def test_back_and_forward_lead_through_searches(opened: Open, demo_rows: list[dict]):
    page = opened()
    ask(page, "a star")
    star = shown(page)
    choose(page, demo_rows[ROW]["image"])
    alike = shown(page)
    answer_to(page, page.go_back)
    assert (shown(page), page.input_value("#text")) == (star, "a star")
    answer_to(page, page.go_forward)
    assert shown(page) == alike
    expect(page.locator("#terms li")).to_have_text(["mine.png✕"])
    answer_to(page, page.go_back)
    page.go_back()
    expect(page.locator("#welcome")).to_be_visible()
    assert (shown(page), page.input_value("#text")) == ([], "")


def test_the_box_emptied_ends_the_search(opened: Open):
    page = opened()
    ask(page, "a star")
    page.fill("#text", "")
    page.press("#text", "Enter")
    expect(page.locator("#welcome")).to_be_visible()
    assert (shown(page), page.url[-2:]) == ([], "/#")


def test_a_late_answer_does_not_replace_a_newer_one(opened: Open, endpoint: Served):
    page = opened()
    held: list[Route] = []
    page.route(SEARCH, lambda route: route.continue_() if held else held.append(route))
    page.fill("#text", "a star")
    with page.expect_request(SEARCH):
        page.press("#text", "Enter")
    ask(page, "a ring")
    with page.expect_response(SEARCH) as late:
        held[0].continue_()
    late.value.finished()
    page.evaluate("fetch('livez').then((reply) => reply.text())")
    assert shown(page) == found(endpoint, {"text": "a ring"})


def test_the_link_that_is_copied_is_the_search(opened: Open):
    page = opened(permissions=CLIPBOARD)
    ask(page, "a star")
    page.click("#link")
    expect(page.locator("#said")).to_have_text("Link copied")
    assert page.evaluate("navigator.clipboard.readText()") == page.url


def test_without_a_clipboard_of_its_own_the_page_still_copies(opened: Open):
    page = opened(permissions=CLIPBOARD)
    ask(page, "a star")
    page.evaluate("Object.defineProperty(navigator, 'clipboard', { value: undefined })")  # as over plain HTTP
    page.click("#link")
    expect(page.locator("#said")).to_have_text("Link copied")
    expect(page.locator("#link")).to_be_focused()
    page.press("#text", "Control+a")
    page.press("#text", "Control+v")
    assert page.input_value("#text") == page.url


def test_the_command_that_is_copied_asks_the_same(opened: Open, endpoint: Served):
    page = opened(permissions=CLIPBOARD)
    ask(page, "it's a 'star' in $HOME")
    page.click("#curl")
    expect(page.locator("#said")).to_have_text("Command copied")
    command = shlex.split(page.evaluate("navigator.clipboard.readText()"))
    assert command[:3] == ["curl", "-s", f"{endpoint.url}/v1/search"]
    assert command[3:6] == ["-H", "Content-Type: application/json", "--data-raw"]
    reply = endpoint.client.post("/v1/search", json=json.loads(command[6]))
    assert [hit["id"] for hit in reply.json()["hits"]] == shown(page)


def test_a_command_with_a_large_picture_reads_it_from_a_document(opened: Open, endpoint: Served, demo_rows: list[dict]):
    page = opened(permissions=CLIPBOARD)
    choose(page, demo_rows[ROW]["image"] + bytes(100_000))  # longer than one argument of a command may be
    page.click("#curl")
    expect(page.locator("#said")).to_have_text("Command copied")
    command, body, end = page.evaluate("navigator.clipboard.readText()").split("\n")
    assert command.endswith(" --data-binary @- <<'END'")
    assert end == "END"
    reply = endpoint.client.post("/v1/search", json=json.loads(body))
    assert [hit["id"] for hit in reply.json()["hits"]] == shown(page)


def test_a_search_by_picture_is_not_copied_as_a_link(opened: Open, demo_rows: list[dict]):
    page = opened()
    choose(page, demo_rows[ROW]["image"])
    page.click("#link")
    expect(page.locator("#said")).to_have_text("A link cannot hold this search: copy it as curl")


def test_the_download_holds_all_that_is_shown(opened: Open):
    page = opened()
    ask(page, "a star")
    answer_to(page, lambda: page.click("#more"))
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "search.json"
    held = json.loads(Path(download.value.path()).read_text(encoding="utf-8"))
    assert [hit["id"] for hit in held["hits"]] == shown(page)
    assert len(shown(page)) == 40


@pytest.mark.parametrize(
    ("status", "code", "advice"),
    [
        (429, "overloaded", "The server is busy. Wait a moment, then search again."),
        (504, "timeout", "The search took too long. Search again, or ask for fewer results."),
        (500, "internal", "Something went wrong at the server. Search again in a moment."),
        (422, "image_truncated", "This picture cannot be read. Choose another one, or another format."),
        (400, "something_new", "The server cannot answer this search. Change it, then search again."),
    ],
)
def test_a_refusal_says_why_and_what_to_do(opened: Open, status: int, code: str, advice: str):
    page = opened(refused="/v1/search")
    page.route(SEARCH, lambda route: refuse(route, status, code))
    ask(page, "a ring")
    assert (page.inner_text("#advice"), page.inner_text("#reason")) == (advice, "the reason")


def test_a_refusal_leaves_no_results_of_another_search_and_goes_with_the_next_answer(opened: Open):
    page = opened(refused="/v1/search")
    ask(page, "a star")
    page.route(SEARCH, lambda route: refuse(route, 503, "overloaded"))
    ask(page, "a ring")
    assert shown(page) == []
    expect(page.locator("#download")).to_be_hidden()
    page.unroute(SEARCH)
    ask(page, "a ring")
    expect(page.locator("#message")).to_be_hidden()
    assert len(shown(page)) == 20


def refuse(route: Route, status: int, code: str) -> None:
    body = {"type": "about:blank", "status": status, "code": code, "detail": "the reason"}
    route.fulfill(status=status, body=json.dumps(body), content_type="application/problem+json")


def test_a_server_that_is_gone_is_said_to_be_gone(opened: Open):
    page = opened(refused="/v1/search")
    page.route(SEARCH, lambda route: route.abort())
    page.fill("#text", "a star")
    page.press("#text", "Enter")
    expect(page.locator("#advice")).to_have_text(
        "The server cannot be reached. Check the connection, then search again."
    )


def test_a_row_that_is_gone_is_said_to_be_gone(opened: Open, endpoint: Served):
    page = opened(refused="/v1/")
    follow(page, f"{endpoint.url}/#id=nobody")
    assert page.inner_text("#advice").startswith("A picture of this search is not in the index. Remove it,")
    assert page.inner_text("#reason").startswith("id 'nobody': not in index")
    page.get_by_role("button", name="Remove nobody").click()
    expect(page.locator("#welcome")).to_be_visible()
    expect(page.locator("#message")).to_be_hidden()


def test_nothing_found_is_no_error_and_says_what_to_do(opened: Open, endpoint: Served):
    page = opened()
    follow(page, f"{endpoint.url}/#text=a+star&column=colour&operator=eq&value=mauve&score=0.99")
    assert page.inner_text("#advice") == "Nothing was found. Change or clear the filter or lower the minimum score."
    expect(page.locator("#message")).not_to_have_class("bad")
    expect(page.locator("#said")).to_have_text("0 pictures")


def test_a_picture_that_cannot_be_had_leaves_its_row_usable(opened: Open, endpoint: Served):
    page = opened(refused="/thumbnail")
    page.route("**/thumbnail*", lambda route: route.fulfill(status=404, body="{}"))
    first = ask(page, "a star").json()["hits"][0]
    button = page.get_by_role("button", name=f"no picture: {first['columns']['caption']}").first
    expect(button).to_have_text("no picture")
    button.click()
    expect(page.locator("#detail-title")).to_have_text(first["columns"]["caption"])
    expect(page.locator("#detail-image")).to_be_hidden()


def test_all_can_be_done_by_keyboard(opened: Open, endpoint: Served):
    page = opened()
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.press("Tab")
    page.keyboard.press("/")
    expect(page.locator("#text")).to_be_focused()
    page.keyboard.type("red/blue")
    answer_to(page, lambda: page.keyboard.press("Enter"))
    assert page.input_value("#text") == "red/blue"
    passed = []
    while "picture" not in passed and len(passed) < 20:
        page.keyboard.press("Tab")
        passed.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert passed == ["main", "file", "", "link", "curl", "download", "picture"]  # "": the summary
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator(".picture").first).to_be_focused()
    first = shown(page)[0]
    page.keyboard.press("Tab")
    answer_to(page, lambda: page.keyboard.press("Enter"))
    assert shown(page) == found(endpoint, {"text": "red/blue"}, {"id": first})
    expect(page.locator("#results")).to_be_focused()  # not thrown back to the top


def test_skipping_to_the_results_keeps_the_search(opened: Open):
    page = opened()
    ask(page, "a star")
    before = (page.url, shown(page))
    page.focus("#skip")
    page.keyboard.press("Enter")
    expect(page.locator("#results")).to_be_focused()
    assert (page.url, shown(page)) == before


def test_what_rows_say_is_shown_and_never_run(opened: Open):
    page = opened(refused="/thumbnail")

    def poisoned(route: Route) -> None:
        reply = route.fetch().json()
        for hit in reply["hits"]:
            hit["columns"] = {"caption": HOSTILE, HOSTILE: HOSTILE}
        route.fulfill(json=reply)

    page.route(SEARCH, poisoned)
    ask(page, "a star")
    assert page.locator(".caption").first.text_content() == HOSTILE
    page.locator(".picture").first.click()
    assert page.locator("#detail-title").text_content() == HOSTILE
    assert HOSTILE in page.locator("#detail dt").all_text_contents()
    answer_to(page, lambda: page.click("#detail-more"))
    assert page.locator("#terms li span").all_text_contents() == [HOSTILE]
    assert page.locator("img[onerror], img[src=x], body script").count() == 0
    assert page.title() == f"{HOSTILE} · rayclip"


def test_a_key_in_the_address_opens_the_page(
    opened: Open, serving: Callable[..., Served], demo_store: str, demo_desk: Desk
):
    key = Key("read", hashlib.sha256(b"a-key").hexdigest())
    locked = serving(ServeConfig(store=demo_store), keys=(key,), desk=demo_desk)
    assert locked.client.get("/").status_code == 401
    page = opened(site=locked.url.replace("//", "//any:a-key@"))
    ask(page, "a star")
    assert len(shown(page)) == 20
    page.wait_for_load_state("networkidle")  # the server goes before the page does


def test_a_table_that_is_chosen_is_asked_and_is_in_the_link(opened: Open, endpoint: Served):
    page = opened(refused="/v1/")

    def one_more(route: Route) -> None:
        info = route.fetch().json()
        info["tables"].append({**info["tables"][0], "table": "letters", "columns": {"font": "string"}})
        route.fulfill(json=info)

    page.route("**/v1/info", one_more)
    follow(page, f"{endpoint.url}/?#text=a+star")
    page.click("summary")
    answer = answer_to(page, lambda: page.select_option("#table", "letters"))
    assert answer.request.post_data_json["table"] == "letters"
    assert page.url.endswith("#text=a+star&table=letters")
    assert page.locator("#column option").all_text_contents() == ["font"]
    assert page.inner_text("#advice").startswith("The table of this search is not served here.")
    answer_to(page, page.go_back)
    assert page.input_value("#table") != "letters"
    assert page.locator("#column option").all_text_contents() == ["caption", "colour"]
    assert shown(page) == found(endpoint, {"text": "a star"})


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_narrow_screen_shows_all_of_it(opened: Open, scheme: str):
    page = opened(viewport=NARROW, color_scheme=scheme)
    assert not is_scrollable_sideways(page)
    ask(page, "a-word-without-an-end" * 40)
    answer_to(page, lambda: page.locator(".plus").first.click())
    page.click("summary")
    assert not is_scrollable_sideways(page)
    for control in ("#text", "#file + label", "#column", "#value", "#score", "#near", "#download", "#terms button"):
        box = page.locator(control).first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= NARROW["width"]
    left, right = (page.locator("#results li").nth(place).bounding_box() for place in (0, 1))
    assert left["y"] == right["y"]  # two columns
    page.locator(".picture").first.click()
    box = page.locator("#detail").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= NARROW["width"]


def test_the_page_is_dark_where_the_system_is(opened: Open):
    levels = []
    for scheme in ("light", "dark"):
        page = opened(color_scheme=scheme)
        ground, text = page.locator("body").evaluate(
            "(body) => [getComputedStyle(body).backgroundColor, getComputedStyle(body).color]"
        )
        levels.append([sum(map(int, re.findall(r"\d+", colour))) for colour in (ground, text)])
    (light, on_light), (dark, on_dark) = levels
    assert light > 700 > 150 > on_light
    assert dark < 150 < 650 < on_dark


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_that_shuts_people_out(opened: Open, scheme: str):
    page = opened(color_scheme=scheme, refused="/v1/search")
    found_in = {"empty": findings(page)}
    ask(page, "a star")
    answer_to(page, lambda: page.locator(".minus").nth(3).click())
    page.click("summary")
    found_in["results"] = findings(page)
    page.locator(".picture").first.click()
    found_in["dialog"] = findings(page)
    page.keyboard.press("Escape")
    page.route(SEARCH, lambda route: refuse(route, 500, "internal"))
    ask(page, "a ring")
    found_in["error"] = findings(page)
    assert found_in == {"empty": [], "results": [], "dialog": [], "error": []}


def findings(page: Page) -> list[str]:
    violations = Axe().run(page).response["violations"]
    return [f"{each['id']}: {each['nodes'][0]['html']}" for each in violations]


def test_the_page_is_small(endpoint: Served):
    paths = ("/", "/page.js", "/page.css", "/favicon.svg")
    assert sum(len(endpoint.client.get(path).content) for path in paths) < 100_000
