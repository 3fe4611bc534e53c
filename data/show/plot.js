// A figure in a notebook: draws the widget's state with one copy of plotly for the whole page
const NIGHT = NIGHT_COLOURS;
const SHARED = (globalThis.__promptbench ??= { lib: null, asked: 0 });

const pause = ms => new Promise(done => setTimeout(done, ms));

function dark() {
  const light = document.body.dataset.jpThemeLight;
  if (light === undefined) return matchMedia("(prefers-color-scheme: dark)").matches;
  return light === "false";
}

// --- the library ----------------------------------------------------------------------------

function load(buffer) {
  const script = document.createElement("script");
  const amd = globalThis.define;
  globalThis.define = undefined;   // or plotly would register with the notebook's loader
  script.onload = () => {
    SHARED.lib = globalThis.Plotly;
    globalThis.define = amd;
  };
  script.src = URL.createObjectURL(new Blob([buffer], { type: "text/javascript" }));
  document.head.append(script);
}

async function library(model, gone) {
  while (!SHARED.lib && !gone.yes) {
    if (Date.now() - SHARED.asked > 20000) {
      SHARED.asked = Date.now();
      model.send({ want: "plotly" });
    }
    await pause(80);
  }
  return SHARED.lib;
}

// --- one figure -----------------------------------------------------------------------------

function dressed(figure, el) {
  const text = JSON.stringify(figure);
  const shown = JSON.parse(dark() ? text.replace(/#[0-9A-Fa-f]{6}/g, c => NIGHT[c.toUpperCase()] || c) : text);
  const colour = getComputedStyle(el).getPropertyValue("--jp-ui-font-color1").trim();
  shown.layout.font.color = colour || shown.layout.font.color;
  shown.layout.modebar = { bgcolor: "rgba(0,0,0,0)" };
  return shown;
}

function listen(plot, model) {
  plot.heard = true;
  plot.on("plotly_click", e => {
    const p = e.points[0];
    model.set("clicked", {
      key: p.customdata ?? null,
      curve: p.curveNumber,
      point: p.pointNumber ?? null,
      at: Date.now(),
    });
    model.save_changes();
  });
}

function say(words, plot, caption) {
  words.textContent = caption;
  plot.setAttribute("role", "img");
  plot.setAttribute("aria-label", caption);
}

function render({ model, el }) {
  const gone = { yes: false };
  const words = document.createElement("div");
  const plot = document.createElement("div");
  words.className = "pb-caption";
  plot.className = "pb-plot";
  el.append(words, plot);

  const config = {
    displaylogo: false,
    responsive: true,
    modeBarButtonsToRemove: ["select2d", "lasso2d"],
  };

  async function draw(figure) {
    say(words, plot, figure.caption || "");
    if (!figure.data) {
      plot.style.display = "none";
      return;
    }
    plot.style.display = "";
    plot.style.minHeight = (figure.layout.height || 300) + "px";
    const lib = await library(model, gone);
    if (!lib || gone.yes) return;
    const shown = dressed(figure, el);
    const drawn = lib.react(plot, shown.data, shown.layout, config);
    await Promise.race([drawn, pause(5000)]);   // a drawing that never ends must not hold up the next
    if (!plot.heard) listen(plot, model);
    plot.dataset.drawn = +(plot.dataset.drawn || 0) + 1;
  }

  let drawing = Promise.resolve();
  let asked = 0;

  function redraw() {
    const mine = ++asked;
    drawing = drawing
      .then(() => mine === asked ? draw(model.get("figure")) : undefined)   // else a newer figure waits
      .catch(e => { words.textContent = "The figure could not be drawn: " + e; });
  }

  function arrived(message, buffers) {
    if (message.plotly && !SHARED.lib) load(buffers[0]);
  }

  const wide = new ResizeObserver(() => {
    if (plot.heard && plot.clientWidth) SHARED.lib?.Plots.resize(plot);
  });
  const theme = new MutationObserver(redraw);
  wide.observe(plot);
  theme.observe(document.body, { attributes: true, attributeFilter: ["data-jp-theme-light"] });
  model.on("msg:custom", arrived);
  model.on("change:figure", redraw);
  redraw();

  return () => {
    gone.yes = true;
    theme.disconnect();
    wide.disconnect();
    model.off("msg:custom", arrived);
    model.off("change:figure", redraw);
    SHARED.lib?.purge(plot);
  };
}

export default { render };
