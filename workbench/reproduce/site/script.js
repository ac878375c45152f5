"use strict";
(() => {
  const root = document.documentElement;
  const themes = ["system", "light", "dark"];
  const stored = (value) => {
    try {
      if (value) localStorage.setItem("theme", value);
      return localStorage.getItem("theme");
    } catch {
      return value; // storage may be switched off; the choice then holds for this page
    }
  };
  const wear = (theme) => {
    if (theme === "system") delete root.dataset.theme;
    else root.dataset.theme = theme;
  };
  let theme = themes.includes(stored()) ? stored() : "system";
  wear(theme);

  document.addEventListener("DOMContentLoaded", () => {
    const find = (id) => document.getElementById(id);
    const button = find("theme");
    const tell = () => { button.textContent = `Theme: ${theme}`; };
    button.hidden = false;
    tell();
    button.addEventListener("click", () => {
      theme = themes[(themes.indexOf(theme) + 1) % themes.length];
      stored(theme);
      wear(theme);
      tell();
    });

    const code = find("code");
    if (code) {
      code.hidden = false;
      code.addEventListener("click", () => {
        const shown = code.getAttribute("aria-pressed") !== "true";
        code.setAttribute("aria-pressed", String(shown));
        code.textContent = shown ? "Code shown" : "Code hidden";
        document.querySelector(".notebook").classList.toggle("bare", !shown);
      });
    }

    const form = document.querySelector(".filters");
    if (!form) return;
    const tiles = [...document.querySelectorAll(".tile")];
    const filter = () => {
      const words = find("search").value.toLowerCase().split(/\s+/).filter(Boolean);
      const [family, verdict, state] = ["family", "verdict", "state"].map((id) => find(id).value);
      let count = 0;
      for (const tile of tiles) {
        const fits = words.every((word) => tile.dataset.text.includes(word))
          && (!family || tile.closest(".family").dataset.family === family)
          && (!verdict || tile.dataset.verdicts.split("|").includes(verdict))
          && (!state || tile.dataset.state === state);
        tile.hidden = !fits;
        count += fits;
      }
      for (const section of document.querySelectorAll(".family")) {
        section.hidden = !section.querySelector(".tile:not([hidden])");
      }
      find("shown").textContent = `${count} of ${tiles.length} shown`;
      find("none").hidden = count > 0;
    };
    form.hidden = false;
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(filter));
    filter();
  });
})();
