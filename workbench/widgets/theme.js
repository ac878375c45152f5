// ipywidgets gives a slider's handle no name; here it gets its row's label, which a screen reader then says.
function name(panel) {
  for (const handle of panel.querySelectorAll(".workbench-row .noUi-handle")) {
    const label = handle.closest(".workbench-row").querySelector("label")?.textContent;
    if (label && handle.getAttribute("aria-label") !== label) handle.setAttribute("aria-label", label);
  }
}

function render({ el }) {
  let observer, waiting;
  const begin = () => {
    const panel = el.closest(".workbench");
    if (!panel) {
      waiting = requestAnimationFrame(begin); // not on the page yet
      return;
    }
    name(panel);
    observer = new MutationObserver(() => name(panel));
    observer.observe(panel, { childList: true, subtree: true });
  };
  begin();
  return () => {
    cancelAnimationFrame(waiting);
    observer?.disconnect();
  };
}

export default { render };
