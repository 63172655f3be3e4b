"""The page in headless Chromium, as people use it: through the function, before the wire of the runtime endpoint.

KENNEL_SCREENSHOTS=FOLDER keeps pictures of it at phone and desktop width, light and dark.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import axe_core_python
import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from safetensors.numpy import save_file
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement

import local
from classify import Application
from container.artifact import NETWORK, WEIGHTS, Manifest, save_artifact
from container.preprocessing import Preprocessing
from deploy.lambda_zip import build
from endpoint import SageMakerEndpoint
from tests.lambda_runtime import (
    ENDPOINT,
    Call,
    Reply,
    RuntimeStandIn,
    container_error,
    forward,
    function,
    function_url,
    photo_answer,
    service_error,
)
from tests.serving import CLASSES, SIZE, running_server
from tests.support import encoded, picture, wait_until

CHROMIUM: Final = shutil.which("chromium") or shutil.which("google-chrome")
CHROMEDRIVER: Final = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and CHROMEDRIVER), reason="no Chromium here: apt-get install chromium chromium-driver"
)

FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--use-fake-device-for-media-stream",
    "--use-fake-ui-for-media-stream",
)
SIZES: Final = {"phone": (390, 844), "desktop": (1280, 900)}
EVIL: Final = "<img src=x onerror=window.pwned=1>"


@dataclass(frozen=True)
class Page:
    """The page as it is open in the browser, and what stands behind it."""

    driver: webdriver.Chrome
    runtime: RuntimeStandIn
    folder: Path

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def run(self, script: str, *arguments: object) -> Any:
        return self.driver.execute_script(script, *arguments)

    def click(self, selector: str) -> None:
        self.find(selector).click()

    def resize(self, size: str, scheme: str = "light") -> None:
        width, height = SIZES[size]
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    def choose(self, data: bytes | None = None, name: str = "rex.jpg") -> None:
        path = self.folder / name
        path.write_bytes(data or encoded(picture(640, 480), "JPEG"))
        self.find("#file").send_keys(str(path))

    def hand_over(self, kind: str, data: bytes, name: str = "rex.jpg") -> None:
        """Drop or paste a file, as the browser tells a page of it."""
        script = """
            const [kind, text, name] = arguments;
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], name, {type: name.endsWith("jpg") ? "image/jpeg" : "text/plain"}));
            const options = {dataTransfer, clipboardData: dataTransfer, bubbles: true, cancelable: true};
            document.getElementById("drop").dispatchEvent(
                kind === "paste" ? new ClipboardEvent(kind, options) : new DragEvent(kind, options));
        """
        self.run(script, kind, base64.b64encode(data).decode(), name)

    def wait(self, selector: str, text: str = "") -> WebElement:
        """Wait until an element is shown and holds `text`."""

        def shown() -> WebElement | None:
            found = [element for element in self.all(selector) if element.is_displayed() and text in element.text]
            return found[0] if found else None

        return wait_until(shown, timeout_s=15, what=f"{selector} with {text!r}")

    def aloud(self) -> str:
        """What a screen reader was last told."""
        return str(self.run("return document.querySelector('[role=status]').textContent"))

    def screenshot(self, name: str) -> None:
        """Where pictures are wanted: one, once all bars have grown."""
        if folder := os.environ.get("KENNEL_SCREENSHOTS"):
            self.run("document.getAnimations().forEach((one) => one.effect.getTiming().iterations > 1 || one.finish())")
            self.driver.save_screenshot(str(Path(folder) / f"{name}.png"))

    def violations(self) -> list[str]:
        """What axe-core finds against WCAG 2.1 A and AA."""
        self.run((Path(axe_core_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8"))
        script = """
            const done = arguments[arguments.length - 1];
            const runOnly = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"];
            document.getAnimations().forEach((one) => one.effect.getTiming().iterations > 1 || one.finish());
            axe.run({runOnly}).then((found) => done(found.violations.map(
                (one) => `${one.id}: ${one.help}: ${one.nodes.map((node) => node.html).join(" ")}`)));
        """
        found = self.driver.execute_async_script(script)
        return [str(violation) for violation in found]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(CHROMEDRIVER))
    driver.set_script_timeout(30)
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def address_and_runtime() -> Iterator[tuple[str, RuntimeStandIn]]:
    with RuntimeStandIn() as runtime, pytest.MonkeyPatch.context() as patch:
        for name, value in runtime.env.items():
            patch.setenv(name, value)
        app: Application = local.application(SageMakerEndpoint(ENDPOINT, read_timeout_s=5))
        with function_url(lambda event: app.handle(event, local.LocalContext())) as address:
            yield address, runtime


@pytest.fixture
def page(driver: webdriver.Chrome, address_and_runtime: tuple[str, RuntimeStandIn], tmp_path: Path) -> Iterator[Page]:
    address, runtime = address_and_runtime
    runtime.behave = photo_answer()
    runtime.calls.clear()
    opened = Page(driver, runtime, tmp_path)
    opened.resize("desktop")
    driver.get(address)
    yield opened
    errors = [entry for entry in driver.get_log("browser") if "status of" not in entry["message"]]  # type: ignore[no-untyped-call]
    assert errors == []


def test_a_chosen_photo_is_shown_with_its_labels_as_bars(page: Page) -> None:
    page.choose()

    assert page.wait("#label").text == "Affenpinscher"
    rows = [row.text.split("\n") for row in page.all("#predictions li")]
    assert rows == [["Affenpinscher", "91.0 %"], ["Beagle", "6.0 %"], ["Chow chow", "3.0 %"]]
    widths = page.run("return [...document.querySelectorAll('.bar')].map((bar) => bar.style.width)")
    assert widths == ["91%", "6%", "3%"]
    assert page.find("#photo").get_attribute("alt") == "Your photo: rex.jpg"
    assert page.find("#photo").get_property("naturalWidth") == 640
    assert "resnet18, version 3" in page.find("#model").text
    assert not page.find("#unsure").is_displayed()


@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_a_photo_is_dropped_or_pasted(page: Page, kind: str) -> None:
    photo = encoded(picture(), "JPEG")
    page.hand_over(kind, photo)

    page.wait("#label", "Affenpinscher")
    assert page.runtime.calls[0].body == photo


def test_the_whole_way_from_the_browser_to_the_network_and_back(driver: webdriver.Chrome, tmp_path: Path) -> None:
    """A function URL, the zip in a real Lambda runtime, HAProxy, MMS and ONNX Runtime; its heat map too."""
    write_explained_artifact(tmp_path / "opt-ml/model")
    zipfile.ZipFile(io.BytesIO(build().data)).extractall(tmp_path / "lambda/task")
    with (
        running_server(tmp_path / "opt-ml") as server,
        RuntimeStandIn(forward(f"127.0.0.1:{server.port}")) as runtime,
        function(tmp_path / "lambda/task", runtime.env) as made,
        function_url(lambda value: made.invoke(value).value) as address,
    ):
        page = Page(driver, runtime, tmp_path)
        page.resize("phone")
        driver.get(address)
        photo = Image.new("RGB", (320, 240), "black")
        photo.paste("blue", (160, 0, 320, 240))
        page.choose(encoded(photo))

        page.wait("#label", "blue")
        assert page.find("#predictions li:first-child .name").text == "blue"
        page.click("#explain")
        wait_until(lambda: page.find("#explain").text == "Show the photo again", timeout_s=15, what="the heat map")
        page.screenshot("whole-way")
        left, right = page.run(PIXELS)
        # Where the photo is blue, the map is red.
        assert right[0] > left[0] + 50


# The colours of the photo on show, at a quarter and at three quarters of its width.
PIXELS: Final = """
    const photo = document.getElementById("photo");
    const canvas = new OffscreenCanvas(photo.naturalWidth, photo.naturalHeight);
    const pen = canvas.getContext("2d", {willReadFrequently: true});
    pen.drawImage(photo, 0, 0);
    const at = (share) => [...pen.getImageData(photo.naturalWidth * share, photo.naturalHeight / 2, 1, 1).data];
    return [at(0.25), at(0.75)];
"""


def write_explained_artifact(folder: Path) -> None:
    """A network whose maps are the photo's colours, coarsely, and whose head is one linear layer."""
    nodes = [
        helper.make_node("AveragePool", ["photos"], ["maps"], kernel_shape=[4, 4], strides=[4, 4]),
        helper.make_node("GlobalAveragePool", ["maps"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "weight"], ["logits"], transB=1),
    ]
    shapes: dict[str, list[str | int]] = {
        "logits": ["batch", 3],
        "features": ["batch", 3],
        "maps": ["batch", 3, SIZE // 4, SIZE // 4],
    }
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    photos = helper.make_tensor_value_info("photos", TensorProto.FLOAT, ["batch", 3, SIZE, SIZE])
    head = np.eye(3, dtype=np.float32)
    graph = helper.make_graph(nodes, "tiny", [photos], outputs, [numpy_helper.from_array(head, "weight")])
    network = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    manifest = Manifest(
        architecture="resnet18",
        class_names=CLASSES,
        preprocessing=Preprocessing.for_image_size(SIZE),
        top_k=3,
    )
    writers = {
        NETWORK: lambda path: path.write_bytes(network.SerializeToString()),
        WEIGHTS: lambda path: save_file({"fc.weight": head}, path),
    }
    save_artifact(folder, manifest, writers)


def test_what_is_dropped_and_no_photo_is_told(page: Page) -> None:
    page.hand_over("drop", b"hello", "letter.txt")

    page.wait("#invitation", "That is not a photo")
    assert page.runtime.calls == []


def test_a_photo_is_taken_with_the_camera_and_the_camera_let_go(page: Page) -> None:
    page.click("#take")
    wait_until(lambda: page.run("return document.getElementById('video').videoWidth"), timeout_s=15, what="the camera")
    page.run("window.tracks = document.getElementById('video').srcObject.getTracks()")
    page.screenshot("camera")
    page.click("#snap")

    page.wait("#label", "Affenpinscher")
    assert page.runtime.calls[0].body.startswith(b"\xff\xd8\xff")
    assert page.run("return window.tracks.every((track) => track.readyState === 'ended')")


def test_the_camera_is_let_go_when_it_is_not_wanted(page: Page) -> None:
    page.click("#take")
    page.wait("#snap")
    page.find("dialog").send_keys(Keys.ESCAPE)

    wait_until(lambda: page.run("return !document.getElementById('video').srcObject"), timeout_s=5, what="its end")
    assert page.runtime.calls == []


def test_a_heat_map_is_shown_on_demand_and_asked_for_once(page: Page) -> None:
    page.runtime.behave = photo_answer(heat_map=encoded(picture(90, 60, seed=1), "PNG"))
    page.choose()
    page.wait("#explain").click()
    wait_until(lambda: page.find("#photo").get_property("naturalWidth") == 90, timeout_s=15, what="the heat map")
    assert "Heat map" in (page.find("#photo").get_attribute("alt") or "")

    page.click("#explain")
    wait_until(lambda: page.find("#photo").get_property("naturalWidth") == 640, timeout_s=15, what="the photo")
    page.click("#explain")

    assert [call.attributes for call in page.runtime.calls] == ["", "explain=cam"]


def test_a_model_without_heat_maps_says_so_and_the_answer_stays(page: Page) -> None:
    def behave(call: Call) -> Reply | None:
        refused = container_error(406, "not_acceptable", "this network has two layers after its pooling")
        return (refused if "explain" in call.attributes else photo_answer())(call)

    page.runtime.behave = behave
    page.choose()
    page.wait("#explain").click()

    page.wait("#wrong", "cannot show where it looked")
    page.screenshot("no-heat-map")
    assert page.find("#label").text == "Affenpinscher"
    assert not page.find("#again").is_displayed()


def test_a_model_that_is_not_confident_is_shown_as_such(page: Page) -> None:
    page.runtime.behave = photo_answer({"Carolina dog": 0.31, "Dingo": 0.3}, confident=False)
    page.choose()

    assert page.wait("#label").text == "Not sure"
    page.wait("#unsure", "never learnt")
    assert page.aloud() == "The model is not confident. Its best guess: Carolina dog, 31.0 %."


def test_names_of_classes_and_of_files_are_text_whatever_they_hold(page: Page) -> None:
    page.runtime.behave = photo_answer({EVIL: 0.9, "&lt;b&gt;": 0.1})
    page.choose(name=f"{EVIL}.jpg")

    assert page.wait("#label").text == EVIL
    assert page.find("#caption").text == f"{EVIL}.jpg"
    assert [row.text for row in page.all("#predictions .name")] == [EVIL, "&lt;b&gt;"]
    assert len(page.all("img")) == 1
    assert page.run("return window.pwned") is None


def test_a_message_of_the_server_is_text_too(page: Page) -> None:
    page.runtime.behave = container_error(400, "unreadable_photo", f"the photo is damaged: {EVIL}")
    page.choose()

    page.wait("#reason", EVIL)
    assert not page.find("#again").is_displayed()
    assert page.run("return window.pwned") is None


def test_what_passes_can_be_tried_again(page: Page) -> None:
    page.runtime.behave = service_error(400, "ThrottlingException")
    page.choose()
    page.wait("#reason", "Many people are asking")
    page.screenshot("busy")
    page.runtime.behave = photo_answer()
    page.click("#again")

    page.wait("#label", "Affenpinscher")
    assert not page.find("#wrong").is_displayed()


def test_without_a_network_the_page_says_so(page: Page) -> None:
    offline = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    page.driver.execute_cdp_cmd("Network.enable", {})
    page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    try:
        page.choose()
        page.wait("#reason", "Are you online?")
    finally:
        page.driver.execute_cdp_cmd("Network.emulateNetworkConditions", {**offline, "offline": False})
    page.driver.get_log("browser")  # type: ignore[no-untyped-call]


def test_a_large_photo_is_sent_smaller_and_upright(page: Page) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    large = encoded(Image.effect_noise((4000, 3000), 60), "JPEG", quality=90, exif=exif.tobytes())
    assert len(large) > 5_000_000
    page.choose(large)
    page.wait("#label", "Affenpinscher")

    sent = Image.open(io.BytesIO(page.runtime.calls[0].body))
    assert (sent.size, len(page.runtime.calls[0].body) < 4_500_000) == ((1536, 2048), True)


def test_the_answer_to_an_earlier_photo_never_shows_under_a_later_one(page: Page) -> None:
    first_may_go = threading.Event()
    answers = iter((photo_answer({"First": 0.9}), photo_answer({"Second": 0.9})))

    def behave(call: Call) -> Reply | None:
        answer = next(answers)(call)
        if len(page.runtime.calls) == 1:
            first_may_go.wait(20)
        return answer

    page.runtime.behave = behave
    page.choose(name="first.jpg")
    page.wait("#waiting", "Looking at the photo")
    wait_until(lambda: page.runtime.calls, timeout_s=10, what="the first request")
    page.screenshot("waiting")
    page.choose(name="second.jpg")
    page.wait("#label", "Second")
    first_may_go.set()

    assert (page.find("#label").text, page.find("#caption").text) == ("Second", "second.jpg")


def test_the_keyboard_reaches_everything_in_order(page: Page) -> None:
    page.choose()
    page.wait("#label")
    page.run("document.activeElement.blur()")
    order = []
    for _ in range(3):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        order.append(page.driver.switch_to.active_element.get_attribute("id"))
        outline = page.run("return getComputedStyle(document.activeElement).outlineStyle")
        assert outline == "solid"

    assert order == ["explain", "choose", "take"]
    page.run("document.getElementById('file').onclick = () => { window.opened = true; }")
    page.find("#choose").send_keys(Keys.ENTER)
    assert page.run("return window.opened")


def test_a_screen_reader_is_told_what_happens(page: Page) -> None:
    page.choose()
    page.wait("#label")

    assert page.aloud() == "Affenpinscher, 91.0 %."
    tree = page.driver.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    told = {(node["role"]["value"], node.get("name", {}).get("value")) for node in tree if not node.get("ignored")}
    assert told >= {
        ("heading", "What is in this photo?"),
        ("heading", "Affenpinscher"),
        ("image", "Your photo: rex.jpg"),
        ("list", "Most probable classes"),
        ("button", "Choose another"),
        ("button", "Take a photo"),
        ("button", "Show where the model looked"),
        ("region", "Your photo"),
        ("region", "Answer"),
    }


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("size", SIZES)
def test_the_page_is_accessible_and_fits_at_every_width(page: Page, size: str, scheme: str) -> None:
    page.resize(size, scheme)
    page.driver.refresh()
    page.screenshot(f"{size}-{scheme}-empty")
    found = page.violations()

    page.runtime.behave = photo_answer(
        {"Carolina_dog": 0.31, "A_breed_with_a_name_that_is_longer_than_a_phone_is_wide": 0.3, "Dingo": 0.12},
        confident=scheme == "light",
        heat_map=encoded(picture(640, 480, seed=3), "PNG"),
    )
    page.choose()
    page.wait("#label")
    found += page.violations()
    page.screenshot(f"{size}-{scheme}-answer")
    page.click("#explain")
    wait_until(lambda: page.find("#explain").text == "Show the photo again", timeout_s=15, what="the heat map")
    found += page.violations()
    page.screenshot(f"{size}-{scheme}-heat-map")

    page.runtime.behave = container_error(400, "unreadable_photo", "the photo is damaged")
    page.choose(name="damaged.jpg")
    page.wait("#reason")
    found += page.violations()

    assert found == []
    assert page.run("return document.documentElement.scrollWidth") <= SIZES[size][0]


def test_the_check_of_accessibility_sees_faults(page: Page) -> None:
    page.choose()
    page.wait("#label")
    page.run("document.getElementById('photo').removeAttribute('alt')")
    page.run("document.getElementById('label').style.color = '#ddd'")

    assert {violation.partition(":")[0] for violation in page.violations()} == {"image-alt", "color-contrast"}


def test_the_page_asks_nobody_but_its_own_function(page: Page) -> None:
    page.driver.get_log("performance")  # type: ignore[no-untyped-call]
    page.driver.refresh()
    page.choose()
    page.wait("#label")

    entries = [json.loads(entry["message"])["message"] for entry in page.driver.get_log("performance")]  # type: ignore[no-untyped-call]
    asked = [e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"]
    origin = page.run("return location.origin")
    assert {url for url in asked if not url.startswith((f"{origin}/", "blob:", "data:"))} == set()
    assert f"{origin}/" in asked
