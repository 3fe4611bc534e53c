// Draws the figures of a page, and lets the reader choose among them
(function () {
  const root = document.documentElement;
  const dark = matchMedia('(prefers-color-scheme:dark)');
  const night = NIGHT_COLOURS;
  const figs = JSON.parse(document.getElementById('figures').textContent);
  const config = {
    responsive: true,
    displaylogo: false,
    showTips: false,
    modeBarButtons: [['toImage']],
    toImageButtonOptions: { format: 'svg' },
  };
  const controls = id => [...document.querySelectorAll('[data-for~="' + id + '"]')];
  const togglers = [...document.querySelectorAll('[data-hides]')];
  const shown = {};    // what is drawn now, by the figure's name
  const hidden = {};   // the lines a reader has hidden; figures of one section share a set
  let printing = false;

  const isDark = () => root.dataset.theme ? root.dataset.theme === 'dark' : dark.matches;
  const css = name => getComputedStyle(root).getPropertyValue(name).trim();
  const leaf = f => Array.isArray(f.data);
  const name = t => t.legendgroup || t.name;
  const hiddenBy = toggler => hidden[toggler.dataset.hides.split(' ')[0]];

  for (const id in figs) hidden[id] = new Set();
  for (const t of togglers) {
    const ids = t.dataset.hides.split(' ');
    for (const id of ids) hidden[id] = hidden[ids[0]];
  }

  // --- one figure -------------------------------------------------------------------------

  function copy(x) {
    const text = JSON.stringify(x);
    if (!isDark() || printing) return JSON.parse(text);
    return JSON.parse(text.replace(/#[0-9A-F]{6}/gi, c => night[c.toUpperCase()] || c));
  }

  function dress(fig, wide, paint) {
    const l = copy(fig.layout);
    const axes = Object.keys(l).filter(k => /^[xy]axis\d*$/.test(k));
    const grid = paint ? paint.grid : css('--grid');
    l.font.color = paint ? paint.soft : css('--soft');
    l.uirevision = fig.caption;
    l.hoverlabel = Object.assign({ font: { family: l.font.family } }, l.hoverlabel);
    for (const k of axes) Object.assign(l[k], { gridcolor: grid, linecolor: grid });
    if (wide < 560) narrow(l, axes);
    return l;
  }

  function narrow(l, axes) {
    l.font.size = 11;
    for (const a of l.annotations || []) if (a.font) a.font.size = 11;
    shortenLabels(l);
    for (const k of axes) if (l[k].title) l[k].title.text = l[k].title.text.replace(/ \(.*\)/, '');
    if (l.xaxis2) stack(l, axes.filter(k => k[0] === 'x').sort());
  }

  function shortenLabels(l) {
    const bare = t => t.replace(/<[^>]*>/g, '');
    const bold = t => (t.match(/<b>.*<\/b>/) || [t])[0];
    const cut = t => t.length > 15 && t === bare(t) ? t.slice(0, 14) + '…' : t;
    if (l.margin.l > 200) {
      l.margin.l = 75;
      l.yaxis.ticktext = l.yaxis.ticktext.map(bold);
    } else if (l.margin.l > 100) {
      l.yaxis.ticktext = l.yaxis.ticktext.map(cut);
      const longest = Math.max(...l.yaxis.ticktext.map(t => bare(t).length));
      l.margin.l = Math.min(l.margin.l, 14 + 6.8 * longest);
    }
  }

  function stack(l, xs) {
    const each = 1 / xs.length;
    const heads = (l.annotations || []).filter(a => a.xref === 'paper');
    xs.forEach((k, i) => {
      const top = 1 - i * each;
      const y = l[k.replace('x', 'y')];
      l[k].domain = [0, 1];
      Object.assign(y, { domain: [top - each + .09, top - .04], showticklabels: true });
      if (heads[i]) Object.assign(heads[i], { x: 0, y: top - .035 });
    });
    l.height = 110 + 270 * xs.length;
    l.margin.t = 20;
  }

  function draw(id, fig, paint) {
    const div = document.getElementById('plot-' + id);
    if (!div) return;
    const l = dress(fig, document.querySelector('main').clientWidth, paint);
    const data = copy(fig.data);
    div.style.height = l.height + 'px';
    shown[id] = fig;
    for (const t of data) t.visible = hidden[id].has(name(t)) ? 'legendonly' : true;
    const caption = document.getElementById('caption-' + id);
    if (caption) caption.textContent = fig.caption;
    div.setAttribute('aria-label', fig.caption + '. ' + (div.dataset.alt || ''));
    Plotly.react(div, data, l, config);
    if (!div.dataset.heard) listen(div, id);
  }

  // --- what a reader hides ----------------------------------------------------------------

  function listen(div, id) {
    div.dataset.heard = 1;
    div.on('plotly_legendclick', e => {
      const n = name(e.data[e.curveNumber]);
      hide(id, n, !hidden[id].has(n));
      return false;
    });
    div.on('plotly_legenddoubleclick', e => {
      alone(id, name(e.data[e.curveNumber]), e.data);
      return false;
    });
  }

  // Only this line, or all lines again if it was alone already
  function alone(id, n, data) {
    const lines = data.filter(t => t.legendgroup);
    const boxes = togglers.filter(t => hiddenBy(t) === hidden[id]).map(t => t.value);
    const all = [...new Set([...(lines.length ? lines : data).map(name), ...boxes])];
    const already = all.every(m => hidden[id].has(m) === (m !== n));
    for (const m of all) hidden[id][already || m === n ? 'delete' : 'add'](m);
    hide(id, n, false);
  }

  function hide(id, n, yes) {
    hidden[id][yes ? 'add' : 'delete'](n);
    for (const t of togglers) if (hiddenBy(t) === hidden[id]) t.checked = !hidden[id].has(t.value);
    for (const other in shown) if (hidden[other] === hidden[id]) draw(other, shown[other]);
  }

  for (const t of togglers) {
    t.addEventListener('change', () => hide(t.dataset.hides.split(' ')[0], t.value, !t.checked));
  }

  // --- what a reader chooses --------------------------------------------------------------

  function redraw(paint) {
    for (const id in shown) draw(id, shown[id], paint);
  }

  // A nest of figures: each control, in the order of the page, goes one level deeper
  function choose(id) {
    const fig = controls(id).reduce((nest, c) => nest && nest[c.value], figs[id]);
    if (fig) draw(id, fig);
  }

  for (const id in figs) {
    if (leaf(figs[id])) {
      draw(id, figs[id]);
    } else {
      choose(id);
      for (const c of controls(id)) c.addEventListener('change', () => choose(id));
    }
  }

  // --- pictures, for a program that drives this page --------------------------------------

  function leaves() {
    const out = [];
    const walk = (f, path) =>
      leaf(f) ? out.push(path) : Object.keys(f).forEach(k => walk(f[k], [...path, k]));
    walk(figs, []);
    return out;
  }

  function picture(path, o) {
    const fig = path.reduce((f, k) => f[k], figs);
    const l = dress(fig, o.width);
    const room = 24 + 20 * o.title.split('<br>').length;
    const title = {
      text: o.title,
      x: 0, xref: 'container', xanchor: 'left',
      y: 1, yref: 'container', yanchor: 'top',
      pad: { t: 24, l: 16 },
      font: { size: 15, color: css('--ink') },
    };
    Object.assign(l, { width: o.width, paper_bgcolor: css('--paper'), title });
    l.margin.t += room;
    l.height += room;
    const scale = o.format === 'svg' ? 1 : o.scale;
    const size = { format: o.format, width: o.width, height: l.height, scale };
    return Plotly.toImage({ data: copy(fig.data), layout: l }, size);
  }

  window.promptbench = { leaves, picture };

  // --- light, dark, paper -----------------------------------------------------------------

  const button = document.getElementById('theme');

  function label() {
    button.textContent = isDark() ? 'Light' : 'Dark';
    button.setAttribute('aria-label', 'Switch to ' + (isDark() ? 'light' : 'dark') + ' colours');
  }

  button.addEventListener('click', () => {
    root.dataset.theme = isDark() ? 'light' : 'dark';
    label();
    redraw();
    try { localStorage.setItem('promptbench-theme', root.dataset.theme); } catch (e) {}
  });

  dark.addEventListener('change', () => {
    label();
    redraw();
  });

  const closed = [];

  addEventListener('beforeprint', () => {
    for (const d of document.querySelectorAll('details:not([open])')) {
      d.open = true;
      closed.push(d);
    }
    printing = true;
    redraw({ soft: '#333', grid: 'rgba(0,0,0,.14)' });
  });

  addEventListener('afterprint', () => {
    printing = false;
    redraw();
    while (closed.length) closed.pop().open = false;
  });

  label();
  root.dataset.ready = '1';
})();
