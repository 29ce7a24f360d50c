// What pages do besides htmx: copy a value, close the menu, notice the end of
// a session. Everything else works without.
"use strict";

for (const button of document.querySelectorAll("[data-copy]")) {
  const field = document.getElementById(button.dataset.copy);
  button.hidden = false;
  field.addEventListener("focus", () => field.select());
  if (document.activeElement === field) field.select();
  button.addEventListener("click", async () => {
    field.select();
    let copied = true;
    try {
      await navigator.clipboard.writeText(field.value);
    } catch {
      copied = document.execCommand("copy"); // plain HTTP has no clipboard
    }
    document.getElementById("copied").textContent = copied
      ? "Copied. It is shown this once and kept nowhere."
      : "The browser did not allow it: copy the selected text yourself.";
  });
}

const menu = document.querySelector("details.menu");
if (menu) {
  document.addEventListener("click", (e) => {
    if (menu.open && !menu.contains(e.target)) menu.open = false;
  });
  document.addEventListener("keydown", (e) => {
    if (e.key === "Escape" && menu.open) {
      menu.open = false;
      menu.querySelector("summary").focus();
    }
  });
}

// A stream that comes back to a daemon where the session has ended.
document.addEventListener("htmx:sse:error", (e) => {
  if (e.detail.status === 401 || e.detail.status === 403) location.reload();
});
