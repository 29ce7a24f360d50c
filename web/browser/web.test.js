// What people do on the pages, in Chromium, against a slipwayd that builds.
import assert from "node:assert/strict";
import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { after, before, test } from "node:test";
import { chromium } from "playwright-core";
import { start } from "./daemon.js";

let daemon;
let browser;

before(async () => {
  daemon = await start();
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM,
    args: process.getuid() === 0 ? ["--no-sandbox"] : [],
  });
});

after(async () => {
  await browser?.close();
  await daemon?.stop();
});

// open returns a page of a browser of its own. What it complains about fails
// the test: a script's error, and what the security policy refused.
async function open(t, options = {}) {
  const context = await browser.newContext({ baseURL: daemon.url, permissions: ["clipboard-read", "clipboard-write"], ...options });
  context.setDefaultTimeout(20_000);
  const page = await context.newPage();
  const complaints = [];
  page.on("pageerror", (err) => complaints.push(err.message));
  page.on("console", (m) => {
    if (m.type() === "error" && !/status of 4\d\d|ERR_|net::|network error/.test(m.text())) complaints.push(m.text());
  });
  t.after(async () => {
    await context.close();
    assert.deepEqual(complaints, []);
  });
  return page;
}

async function signIn(page, token = daemon.token) {
  await page.goto("/signin");
  await page.getByLabel("Token", { exact: true }).fill(token);
  await page.keyboard.press("Enter");
  await page.waitForURL("**/builds");
  return page;
}

async function signedIn(t, token, options) {
  return signIn(await open(t, options), token);
}

// create fills in the form of a token and returns its value.
async function create(page, { type, name, app }) {
  await page.goto("/tokens/new");
  await page.getByLabel("Name").fill(name);
  await page.locator(`[name=type][value=${type}]`).check();
  if (app) await page.locator("#app").fill(app);
  await page.getByRole("button", { name: "Create token" }).click();
  return page.getByLabel("Value").inputValue();
}

const row = (page, name) => page.locator("tbody tr").filter({ has: page.locator(".name", { hasText: new RegExp(`^${name}$`) }) });

test("a wrong token is refused with a sentence", async (t) => {
  const page = await open(t);
  await page.goto("/tokens");
  await page.getByLabel("Token", { exact: true }).fill("su_wrong");
  await page.keyboard.press("Enter");
  await page.getByRole("alert").waitFor();
  assert.match(page.url(), /\/signin/);
});

test("a token is created, copied, used, revoked and deleted", async (t) => {
  const page = await signedIn(t);
  await page.locator(".menu summary").click();
  await page.getByRole("link", { name: "Token Management" }).click();
  const value = await create(page, { type: "deploy", name: "ci", app: "shop" });
  assert.match(value, /^sd_/);

  await page.getByRole("button", { name: "Copy" }).click();
  await page.getByText("Copied.").waitFor();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), value);
  assert.match(await daemon.slipway(["whoami", "--json"], { token: value }), /"app": ?"shop"/);
  await page.reload();
  await page.getByText("shown once").waitFor();
  assert.ok(!(await page.content()).includes(value));
  await page.goBack();
  assert.ok(!(await page.content()).includes(value));

  await page.goto("/tokens");
  await row(page, "ci").getByText("Active").waitFor();
  assert.equal(await row(page, "ci").getByRole("link", { name: "Delete" }).count(), 0);
  await row(page, "ci").getByRole("link", { name: "Revoke ci" }).click();
  await page.getByRole("link", { name: "Keep it" }).click();
  await row(page, "ci").getByText("Active").waitFor();
  await row(page, "ci").getByRole("link", { name: "Revoke ci" }).click();
  await page.getByRole("button", { name: "Revoke token" }).click();
  await row(page, "ci").getByText("Revoked").waitFor();
  assert.match(await daemon.slipway(["whoami"], { token: value, fails: true }), /revoked/);
  await row(page, "ci").getByRole("link", { name: "Delete ci" }).click();
  await page.getByRole("button", { name: "Delete record" }).click();
  await page.getByText("The record is deleted.").waitFor();
  assert.equal(await row(page, "ci").count(), 0);
});

test("the form shows what belongs to the type", async (t) => {
  const page = await signedIn(t);
  await page.goto("/tokens/new");
  for (const [type, shown, hidden] of [
    ["registry", ["permission", "app"], ["command"]],
    ["machine-exec", ["command", "app"], ["permission"]],
    ["org", [], ["permission", "command", "app"]],
  ]) {
    await page.locator(`[name=type][value=${type}]`).check();
    for (const id of shown) assert.ok(await page.locator(`#${id}`).isVisible(), `${type}: ${id}`);
    for (const id of hidden) assert.ok(!(await page.locator(`#${id}`).isVisible()), `${type}: ${id}`);
  }
});

test("tokens work without JavaScript", async (t) => {
  const page = await signedIn(t, daemon.token, { javaScriptEnabled: false });
  const value = await create(page, { type: "readonly", name: "plain" });
  assert.match(value, /^sr_/);
  assert.ok(!(await page.getByRole("button", { name: "Copy" }).isVisible()));
  await page.goto("/tokens");
  await row(page, "plain").getByRole("link", { name: "Revoke plain" }).click();
  await page.getByRole("button", { name: "Revoke token" }).click();
  await row(page, "plain").getByText("Revoked").waitFor();
  await page.locator(".menu summary").click();
  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByText("You have signed out.").waitFor();
});

test("developers see and do less than admins", async (t) => {
  const admin = await signedIn(t);
  await create(admin, { type: "org", name: "of-admin" });
  await admin.goto("/users");
  await admin.getByLabel("New user").fill("dev");
  await admin.getByRole("button", { name: "Create" }).click();
  const dev = await signedIn(t, await admin.getByLabel("Value").inputValue());
  await dev.locator(".menu summary").click();
  assert.equal(await dev.getByRole("link", { name: "Users" }).count(), 0);
  await create(dev, { type: "deploy", name: "of-dev", app: "tools" });
  await dev.goto("/tokens/new");
  assert.equal(await dev.getByLabel("Never expires").count(), 0);
  await dev.goto("/tokens");
  await row(dev, "of-dev").waitFor();
  assert.equal(await row(dev, "of-admin").count(), 0);
  await dev.goto("/users");
  await dev.getByRole("heading", { name: "Not allowed" }).waitFor();
  await admin.goto("/tokens");
  await row(admin, "of-dev").getByRole("link", { name: "Revoke of-dev" }).waitFor();
});

// lines is a script that prints numbered lines, slowly.
const lines = (n, every) => `i=0; while [ $i -lt ${n} ]; do i=$((i+1)); echo "line $i of ${n} <b>&"; /bin/busybox sleep ${every}; done\n`;

test("a log moves while the build runs, and goes on after a lost connection", async (t) => {
  const page = await signedIn(t);
  const deployed = daemon.slipway(["deploy", "-a", "shop", daemon.app("shop", lines(50, 0.1))]);
  await page.getByText("Running").first().waitFor(); // the list moves, too
  await page.locator("td[data-label=Build] a").first().click();
  const log = page.locator(".step pre").filter({ hasText: "line 1 of" });
  await log.getByText("line 5 of").waitFor();
  await page.evaluate(() => (window.sameDocument = true));
  daemon.cut();
  await log.getByText("line 30 of").waitFor();
  daemon.cut();
  await page.locator("h1").getByText("Succeeded").waitFor();
  assert.ok(await page.evaluate(() => window.sameDocument), "the page was loaded again");
  const want = Array.from({ length: 50 }, (_, i) => `line ${i + 1} of 50 <b>&\n`).join("");
  assert.equal(await log.textContent(), want);
  assert.equal(await page.locator("#stream").count(), 0);
  await deployed;
  await page.goto("/builds?app=shop");
  await page.getByText("Succeeded").first().waitFor();
});

test("lines that come live are each there once", async (t) => {
  const page = await signedIn(t);
  const deployed = daemon.slipway(["deploy", "-a", "live", daemon.app("live", lines(60, 0.1))]);
  await page.getByText("Running").first().waitFor();
  await page.locator("td[data-label=Build] a").first().click();
  const log = page.locator(".step pre").filter({ hasText: "line 1 of" });
  await log.getByText("line 3 of").waitFor();
  daemon.cut();
  await log.getByText("line 36 of").waitFor();
  // Before the end, which loads the whole log anew.
  assert.ok(await page.locator("#stream").count(), "the build ended too early for this test");
  const text = await log.textContent();
  for (let i = 1; i <= 36; i++) assert.equal(text.split(`line ${i} of`).length, 2, `line ${i}`);
  await deployed;
});

test("a build is cancelled", async (t) => {
  const page = await signedIn(t);
  const deployed = daemon.slipway(["deploy", "-a", "slow", daemon.app("slow", lines(600, 0.1))], { fails: true });
  await page.getByText("Running").first().waitFor();
  await page.locator("td[data-label=Build] a").first().click();
  await page.getByText("line 2 of").first().waitFor();
  await page.getByRole("link", { name: "Cancel build" }).click();
  await page.getByRole("button", { name: "Cancel build" }).click();
  await page.locator("h1").getByText("Cancelled").waitFor();
  await deployed;
});

test("the end of a session leads from a live page to the sign-in page", async (t) => {
  const page = await signedIn(t);
  const deployed = daemon.slipway(["deploy", "-a", "watched", daemon.app("watched", lines(600, 0.1))], { fails: true });
  await page.getByText("Running").first().waitFor();
  await page.locator("td[data-label=Build] a").first().click();
  await page.getByText("line 2 of").first().waitFor();
  const id = new URL(page.url()).pathname.split("/").at(-1);
  const sessions = await signedIn(t);
  await sessions.goto("/tokens?sessions=1");
  const mine = sessions.locator("tbody tr").filter({ hasText: "browser" }).filter({ hasText: "Active" }).filter({ hasNotText: "this one" });
  await mine.first().getByRole("link", { name: /Revoke/ }).click();
  await sessions.getByRole("button", { name: "Revoke token" }).click();
  await page.getByText("Your session has ended").waitFor({ timeout: 5000 });
  assert.match(page.url(), /\/signin\?next=%2Fbuilds%2F/);
  await daemon.slipway(["builds", "cancel", id]);
  await deployed;
});

test("the keyboard gets everywhere, and focus is seen", async (t) => {
  const page = await signedIn(t);
  await page.goto("/tokens");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to content");
  const order = [];
  for (let i = 0; i < 6; i++) {
    await page.keyboard.press("Tab");
    order.push(await page.evaluate(() => document.activeElement.textContent.trim() || document.activeElement.name));
    const outline = await page.evaluate(() => getComputedStyle(document.activeElement).outlineStyle);
    assert.notEqual(outline, "none", order.at(-1));
  }
  assert.deepEqual(order.slice(0, 6), ["Slipway", "Builds", "Environments", "Cache", "A", "New token"]);
  await page.locator(".menu summary").focus();
  await page.keyboard.press("Enter");
  assert.ok(await page.getByRole("link", { name: "Token Management" }).isVisible());
  await page.keyboard.press("Escape");
  assert.ok(!(await page.getByRole("link", { name: "Token Management" }).isVisible()));
  for (const where of ["/signin", "/tokens/new", "/tokens", "/builds", "/cache", "/users", "/environments"]) {
    await page.goto(where);
    const bare = await page.evaluate(() =>
      [...document.querySelectorAll("input:not([type=hidden]), select, textarea")].filter((e) => !e.labels.length).map((e) => e.name),
    );
    assert.deepEqual(bare, [], `${where}: fields without a label`);
  }
});

test("pages fit a phone, and nothing jumps", async (t) => {
  const page = await signedIn(t, daemon.token, { viewport: { width: 360, height: 740 } });
  await page.addInitScript(() => {
    window.shift = 0;
    new PerformanceObserver((list) => {
      for (const e of list.getEntries()) window.shift += e.value;
    }).observe({ type: "layout-shift", buffered: true });
  });
  await page.goto("/builds?app=shop");
  const build = await page.locator("td[data-label=Build] a").first().getAttribute("href");
  for (const where of ["/builds", build, "/tokens?sessions=1", "/tokens/new", "/cache", "/users", "/environments"]) {
    await page.goto(where);
    const over = await page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
    assert.ok(over <= 0, `${where} is ${over} px too wide`);
    assert.ok((await page.evaluate(() => window.shift)) < 0.02, `${where} jumps`);
  }
});

// The pictures of the documentation, in the directory that SCREENSHOTS names.
test("pictures", async (t) => {
  const dir = process.env.SCREENSHOTS || fs.mkdtempSync(path.join(os.tmpdir(), "pictures-"));
  if (!process.env.SCREENSHOTS) t.after(() => fs.rmSync(dir, { recursive: true }));
  fs.mkdirSync(dir, { recursive: true });
  await daemon.slipway(["deploy", "-a", "billing", daemon.app("billing", "echo 'src/cart.ts(14,7): error TS2322: wrong type'\nexit 2\n")], { fails: true });
  const admin = await signedIn(t);
  await create(admin, { type: "deploy", name: "ci", app: "shop" });
  await create(admin, { type: "registry", name: "cluster" });
  for (const [look, options] of [
    ["light", { viewport: { width: 1180, height: 720 } }],
    ["dark", { viewport: { width: 1180, height: 720 }, colorScheme: "dark" }],
    ["phone", { viewport: { width: 360, height: 720 } }],
  ]) {
    const page = await signedIn(t, daemon.token, options);
    await page.goto("/builds?app=shop");
    const build = await page.locator("td[data-label=Build] a").first().getAttribute("href");
    const all = { builds: "/builds", build, tokens: "/tokens", "new-token": "/tokens/new" };
    for (const [name, where] of Object.entries(all)) {
      await page.goto(where);
      await page.screenshot({ path: path.join(dir, `${name}-${look}.png`) });
    }
  }
});
