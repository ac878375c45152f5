// JupyterLab's extension of the workbench, written by hand as the module federation container that a build would make:
// what it needs of JupyterLab is shared with it, so there is nothing to build.
// Does: a launcher card that opens the index; a command and a toolbar button that run a notebook up to the end of its
// first look and scroll there. Does not: work outside JupyterLab, or talk to the server itself.
(() => {
  "use strict";
  const INDEX = "index.ipynb";
  const FIRST_LOOK = /^##\s.*\bfirst look\b/im;
  let shared;

  // Any version will do: these are singletons, of which JupyterLab has shared one.
  const imported = async (name) => (await Object.values(shared[name])[0].get())();

  const plugins = async () => {
    const [{ ILauncher }, { INotebookTracker, NotebookActions }, { CommandToolbarButton, LabIcon }] = await Promise.all(
      ["@jupyterlab/launcher", "@jupyterlab/notebook", "@jupyterlab/ui-components"].map(imported),
    );
    const icon = new LabIcon({
      name: "workbench:icon",
      svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 22 22" fill="none"><g
        class="jp-icon3" stroke="#616161" stroke-width="2"><path d="M3 3v16h16"/><path d="M6 15c4 0 4-9 7-9 2 0 2 8 6 9"/></g></svg>`,
    });

    const open = async (app, path) => {
      const panel = await app.commands.execute("docmanager:open", { path, factory: "Notebook" });
      await panel.context.ready;
      return panel;
    };

    // Where the first look starts and where the next section does; start is -1 where there is none.
    const sections = (panel) => {
      const cells = [...panel.content.model.cells];
      const heading = (pattern, from) => cells.findIndex(
        (cell, i) => i >= from && cell.type === "markdown" && pattern.test(cell.sharedModel.getSource()),
      );
      const start = heading(FIRST_LOOK, 0);
      const end = heading(/^##\s/m, start + 1);
      return { start, end: end < 0 ? cells.length : end };
    };

    const runFirstLook = async (panel) => {
      const { start, end } = sections(panel);
      if (start < 0) return;
      const cells = panel.content.widgets.slice(0, end).filter((cell) => cell.model.type === "code");
      await panel.sessionContext.ready;
      const done = NotebookActions.runCells(panel.content, cells, panel.sessionContext);
      panel.content.activeCellIndex = start;
      await panel.content.scrollToItem(start, "start");
      await done;
      // Outputs have pushed the section down meanwhile; what there is to move should be in sight.
      const shows = cells.findIndex((cell) => panel.content.widgets.indexOf(cell) > start && cell.node.querySelector(".jupyter-widgets"));
      if (shows < 0) return panel.content.scrollToItem(start, "start");
      panel.content.activeCellIndex = panel.content.widgets.indexOf(cells[shows]);
      cells[shows].outputArea.node.scrollIntoView({ block: "start" });
    };

    const activate = (app, tracker, launcher) => {
      app.commands.addCommand("workbench:index", {
        label: "Workbench papers",
        caption: "The index of the papers, with their verdicts",
        icon,
        execute: () => open(app, INDEX),
      });
      app.commands.addCommand("workbench:first-look", {
        label: "Run first look",
        caption: "Run the notebook up to the end of its first look, and go there",
        icon,
        execute: async ({ path }) => {
          const panel = path ? await open(app, path) : tracker.currentWidget;
          if (panel) await runFirstLook(panel);
        },
      });
      launcher?.add({ command: "workbench:index", category: "Notebook", rank: -1 });
      tracker.widgetAdded.connect(async (_, panel) => {
        await panel.context.ready;
        if (sections(panel).start < 0) return;
        const button = new CommandToolbarButton({ commands: app.commands, id: "workbench:first-look", label: "First look" });
        panel.toolbar.insertAfter("restart-and-run", "first-look", button);
      });
    };

    return [{
      id: "workbench-lab:plugin",
      description: "A launcher card and the first look of a paper's notebook.",
      autoStart: true,
      requires: [INotebookTracker],
      optional: [ILauncher],
      activate,
    }];
  };

  window._JUPYTERLAB = window._JUPYTERLAB || {};
  window._JUPYTERLAB["workbench-lab"] = {
    init: (scope) => { shared = scope; },
    get: async () => {
      const found = await plugins();
      return () => ({ __esModule: true, default: found });
    },
  };
})();
