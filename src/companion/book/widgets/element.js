  const root = document.querySelector('[id="@id@"]:not([data-ready])');  // the same widget may stand on the page twice
  if (!root) return;
  root.dataset.ready = "";
  const $ = (selector) => root.querySelector(selector), $$ = (selector) => [...root.querySelectorAll(selector)];
  const make = (tag, text = "", children = []) => { const e = document.createElement(tag); e.textContent = text; e.append(...children); return e; };
  const pressed = (button) => button.getAttribute("aria-pressed") === "true", press = (button, on) => button.setAttribute("aria-pressed", on);
  const data = JSON.parse($('script[type="application/json"]').textContent);
