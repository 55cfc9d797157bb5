//! The page in a browser, at the size of a desk and of a phone: looked at, typed into, clicked. Leaves its pictures in
//! `target/tmp`. Where there is no browser, nothing is tested, which is an error on continuous integration.
#![allow(clippy::unwrap_used)] // a panic is how a test fails

mod bus;
mod http_client;
mod tiny;

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bus::{Daemon, PATIENCE, config_text, until, write_model_and_stripes};
use fantoccini::key::Key;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use serde_json::{Value, json};

/// A chromedriver; it ends with the value.
struct Driver {
    child: Child,
    address: String,
}

impl Driver {
    /// Starts one; `None` if it is not installed, which continuous integration does not accept.
    fn start() -> Option<Self> {
        let mut command = Command::new("chromedriver");
        let spawned = command
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = spawned else {
            assert!(
                std::env::var_os("CI").is_none(),
                "no chromedriver (Debian: chromium-driver)"
            );
            eprintln!("SKIPPED: the page was not looked at with a browser: no chromedriver (Debian: chromium-driver)");
            return None;
        };
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let said = "started successfully on port ";
        let port = lines.map_while(Result::ok).find_map(|line| {
            let (_, port) = line.split_once(said)?;
            Some(port.trim_end_matches('.').to_owned())
        });
        let address = format!("http://127.0.0.1:{}", port.expect("chromedriver says its port"));
        Some(Self { child, address })
    }

    /// The page of a daemon, once its camera is online, in a browser of its own with further arguments and options; the
    /// browser's files are below `dir`.
    async fn page(&self, daemon: SocketAddr, arguments: &[&str], options: &Value, dir: &Path) -> Page {
        let profile = format!("--user-data-dir={}", dir.join("profile").display());
        // Chromium's own sandbox is not for root.
        let fixed = [
            "--headless=new",
            "--no-sandbox",
            "--disable-dev-shm-usage",
            "--disable-gpu",
            &profile,
        ];
        let arguments = [&fixed[..], arguments].concat();
        let mut chrome = json!({ "args": arguments });
        for (key, value) in options.as_object().unwrap() {
            chrome[key] = value.clone();
        }
        let mut capabilities = serde_json::Map::new();
        capabilities.insert("goog:chromeOptions".into(), chrome);
        let mut builder = ClientBuilder::new(HttpConnector::new());
        let client = builder.capabilities(capabilities).connect(&self.address).await.unwrap();
        let page = Page { client };
        page.client.goto(&format!("http://{daemon}/")).await.unwrap();
        page.until("the camera is online", ONLINE).await;
        page
    }
}

impl Drop for Driver {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The page as a browser has it.
struct Page {
    client: Client,
}

impl Page {
    async fn js(&self, script: &str) -> Value {
        self.client
            .execute(&format!("return {script};"), Vec::new())
            .await
            .unwrap()
    }

    /// Waits until an expression is true.
    async fn until(&self, what: &str, script: &str) {
        let start = Instant::now();
        while self.js(script).await != json!(true) {
            if start.elapsed() > PATIENCE {
                self.picture("failed").await;
                panic!(
                    "{what} does not come true: {}",
                    self.js("document.body.innerText").await
                );
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn click(&self, css: &str) {
        self.client
            .find(Locator::Css(css))
            .await
            .unwrap()
            .click()
            .await
            .unwrap();
    }

    async fn type_text(&self, css: &str, text: &str) {
        self.client
            .find(Locator::Css(css))
            .await
            .unwrap()
            .send_keys(text)
            .await
            .unwrap();
    }

    /// A picture of the window, in `target/tmp`.
    async fn picture(&self, name: &str) {
        let bytes = self.client.screenshot().await.unwrap();
        std::fs::write(
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("page-{name}.png")),
            bytes,
        )
        .unwrap();
    }

    /// Red, green and blue of the camera's picture, at shares of its size.
    async fn pixel(&self, x: f64, y: f64) -> [i64; 3] {
        let script = format!(
            "(() => {{ const i = document.querySelector('img'), c = document.createElement('canvas');\
             if (!i.complete || !i.naturalWidth) return null; c.width = i.naturalWidth; c.height = i.naturalHeight;\
             const g = c.getContext('2d'); g.drawImage(i, 0, 0);\
             return [...g.getImageData({x} * c.width, {y} * c.height, 1, 1).data].slice(0, 3); }})()"
        );
        let start = Instant::now();
        loop {
            let found = self.js(&script).await;
            if let Ok(pixel) = serde_json::from_value(found) {
                return pixel;
            }
            assert!(start.elapsed() < PATIENCE, "there is no picture");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn until_pixel(&self, what: &str, (x, y): (f64, f64), wanted: impl Fn([i64; 3]) -> bool) {
        let start = Instant::now();
        loop {
            let found = self.pixel(x, y).await;
            if wanted(found) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{what}: the pixel is {found:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Nothing is wider than the window, and everything that is touched is large enough for a finger and has a name.
    async fn check_layout(&self) {
        let wide = self
            .js("document.documentElement.scrollWidth - document.documentElement.clientWidth")
            .await;
        assert_eq!(wide, json!(0), "the page is wider than the window");
        let small = self
            .js(
                "[...document.querySelectorAll('button, input, summary, .switch, footer a')]\
                 .filter(e => e.offsetParent && e.type !== 'checkbox' && e.getBoundingClientRect().height < 40)\
                 .map(e => e.outerHTML)",
            )
            .await;
        assert_eq!(small, json!([]), "too small for a finger");
        let nameless = self
            .js("[...document.querySelectorAll('input, button, img, [role=meter]')]\
                 .filter(e => !(e.getAttribute('aria-label') || e.alt || e.textContent.trim() || e.labels?.length))\
                 .map(e => e.outerHTML)")
            .await;
        assert_eq!(nameless, json!([]), "without a name that is read aloud");
    }
}

const ONLINE: &str = "document.querySelector('.badge')?.textContent === 'online'";

/// The threshold's slider and the remove button of a query.
fn of_query(part: &str, id: &str) -> String {
    format!("[aria-label='{part} {id}']")
}

fn has_query(id: &str) -> String {
    format!("[...document.querySelectorAll('.query strong')].some(e => e.textContent === '{id}')")
}

fn start_daemon(dir: &Path, address: SocketAddr) -> Daemon {
    let http = format!("[dbus]\nenabled = false\n[http]\nlisten = \"{address}\"\n");
    let daemon = Daemon::start(dir, &config_text(dir, &http));
    until("a thing is there", || daemon.count("yard", "red") == Some(1));
    daemon
}

/// A bundle, and a picture of the size of a camera's.
fn prepare(dir: &Path) {
    write_model_and_stripes(dir, (640, 480), [240, 440]);
}

fn query_state(address: SocketAddr, id: &str) -> Value {
    http_client::get(address, "/api/state").json()["cameras"]["yard"]["queries"][id].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_query_is_typed_seen_on_the_picture_cut_and_removed_and_the_page_survives_a_restart() {
    let Some(driver) = Driver::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let address = http_client::free_address();
    let daemon = start_daemon(dir.path(), address);
    let size = ["--window-size=1280,900"];
    let page = driver.page(address, &size, &json!({}), dir.path()).await;
    page.until("red is in the list", &has_query("red")).await;
    page.until(
        "red is present",
        "document.querySelector('.bar').classList.contains('present')",
    )
    .await;
    let sea = (0.53, 0.7);
    let plain = page.pixel(sea.0, sea.1).await;
    page.check_layout().await;

    page.type_text("form input", "blue").await;
    page.click("form button").await;
    page.until("blue is in the list", &has_query("blue")).await;
    page.until(
        "the field is empty again",
        "document.querySelector('form input').value === ''",
    )
    .await;
    assert_eq!(query_state(address, "blue")["query"]["prompts"], json!(["blue"]));
    page.until_pixel("blue is overlaid", sea, |found| {
        (found[0] - plain[0]).abs() + (found[1] - plain[1]).abs() > 40
    })
    .await;
    page.until(
        "blue is counted",
        "[...document.querySelectorAll('.there')].every(e => e.textContent === '1 there')",
    )
    .await;
    page.click("summary").await;
    page.picture("desk").await;
    page.click("summary").await;

    // A word that the model does not know; and what looks like markup stays text.
    page.type_text("form input", "<img src=x>").await;
    page.click("form button").await;
    page.until(
        "the refusal is shown",
        "!document.querySelector('.camera .error').hidden",
    )
    .await;
    let error = page.js("document.querySelector('.camera .error').textContent").await;
    assert!(
        error.as_str().unwrap().starts_with("Not done: query \"img-src-x\""),
        "{error}"
    );
    assert_eq!(page.js("document.querySelectorAll('img').length").await, json!(1));
    page.picture("refused").await;
    page.js("document.querySelector('form input').value = ''").await;

    let slider = of_query("Threshold of", "red");
    let before = query_state(address, "red")["threshold"].as_f64().unwrap();
    let one = Key::Left.to_string();
    page.type_text(&slider, &one.repeat(3)).await;
    until("the threshold is three hundredths lower", || {
        let now = query_state(address, "red")["query"]["threshold"].as_f64();
        now.is_some_and(|now| (before - now - 0.03).abs() < 1e-4)
    });
    let shown = format!("document.querySelector(\"{slider}\").value === '{:.2}'", before - 0.03);
    page.until("the slider stays there", &shown).await;
    page.until("the refusal is gone", "document.querySelector('.camera .error').hidden")
        .await;

    page.click(&of_query("Remove", "blue")).await;
    page.until("blue is gone", &format!("!{}", has_query("blue"))).await;
    assert_eq!(query_state(address, "blue"), Value::Null);
    page.until_pixel("blue is plain again", sea, |found| (found[0] - plain[0]).abs() < 15)
        .await;

    page.click(".switch").await;
    page.until(
        "detection is off",
        "document.querySelector('.badge').textContent === 'disabled'",
    )
    .await;
    page.picture("off").await;
    page.click(".switch").await;
    page.until("detection is on", ONLINE).await;

    drop(daemon);
    page.until(
        "the page says that the daemon is gone",
        "!document.querySelector('#trouble').hidden",
    )
    .await;
    page.picture("gone").await;
    let _daemon = start_daemon(dir.path(), address);
    page.until("it is back by itself", "document.querySelector('#trouble').hidden")
        .await;
    page.until("the camera is online again", ONLINE).await;
    page.until_pixel("pictures come again", sea, |found| (found[0] - plain[0]).abs() < 15)
        .await;
    page.client.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_fits_a_phone_in_the_dark() {
    let Some(driver) = Driver::start() else { return };
    let dir = tempfile::tempdir().unwrap();
    prepare(dir.path());
    let address = http_client::free_address();
    let _daemon = start_daemon(dir.path(), address);
    let phone = json!({ "mobileEmulation": {
        "deviceMetrics": { "width": 360, "height": 780, "pixelRatio": 2.0, "touch": true, "mobile": true }
    } });
    let arguments = ["--blink-settings=preferredColorScheme=0"];
    let page = driver.page(address, &arguments, &phone, dir.path()).await;
    assert_eq!(page.js("innerWidth").await, json!(360));
    assert_eq!(
        page.js("matchMedia('(prefers-color-scheme: dark)').matches").await,
        json!(true)
    );
    page.type_text(
        "form input",
        "the blue thing that stands on the right, or something else in blue",
    )
    .await;
    page.click("form button").await;
    page.until("it is in the list", "document.querySelectorAll('.query').length === 2")
        .await;
    page.pixel(0.5, 0.5).await;
    page.check_layout().await;
    page.picture("phone").await;
    page.js("document.querySelector('summary').scrollIntoView()").await;
    page.click("summary").await;
    page.check_layout().await;
    page.picture("phone-below").await;
    page.client.close().await.unwrap();
}
