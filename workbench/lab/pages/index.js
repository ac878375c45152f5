(() => {
  // An index that was shown twice has two roots; each script wakes those that are still asleep.
  for (const root of document.querySelectorAll(".workbench-index:not([data-awake])")) {
    root.dataset.awake = "";
    const form = root.querySelector("form");
    const tiles = [...root.querySelectorAll("li[data-status]")];
    const filter = () => {
      const { search, family, verdict, status } = Object.fromEntries(new FormData(form));
      const words = search.toLowerCase().split(/\s+/).filter(Boolean);
      let count = 0;
      for (const tile of tiles) {
        const fits = words.every((word) => tile.dataset.text.includes(word))
          && (!family || tile.closest("section").dataset.family === family)
          && (!verdict || tile.dataset.verdicts.split("|").includes(verdict))
          && (!status || tile.dataset.status === status);
        tile.hidden = !fits;
        count += fits;
      }
      for (const section of root.querySelectorAll("section")) {
        section.hidden = !section.querySelector("li[data-status]:not([hidden])");
      }
      root.querySelector("output").textContent = `${count} of ${tiles.length} papers`;
      root.querySelector(".none").hidden = count > 0;
    };
    form.addEventListener("input", filter);
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("reset", () => setTimeout(filter));
    // The notebook's own keys (A for a cell above, D D to delete one) are not meant for what is typed here.
    root.addEventListener("keydown", (event) => {
      if (event.target.closest("input, select, button, a") && event.key !== "Escape") event.stopPropagation();
    });
  }
})();
