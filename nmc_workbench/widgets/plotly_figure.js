// A plotly figure: each page keeps a copy, puts every change into it, and draws its views from it.
const PLOTLY = Symbol.for('nmc_workbench.plotly');
const TYPED = {u1: Uint8Array, f4: Float32Array, f8: Float64Array};

function plotly(model) {        // the library, which the kernel sends once to a page, however many figures it has
  const ask = () => globalThis[PLOTLY] ??= new Promise((done, fail) => {
    model.on('msg:custom', (content, buffers) => {
      if (!content.plotly) return;
      const before = 'const before = globalThis.Plotly, module = {exports: {}};';
      const after = ';globalThis.Plotly = before; export default module.exports;';
      const address = URL.createObjectURL(new Blob([before, buffers[0], after], {type: 'text/javascript'}));
      import(address).then(m => done(m.default), fail);
    });
    model.send({ask: 'plotly'});
    setTimeout(() => fail(new Error('the kernel did not send plotly')), 60000);
  }).catch(e => { delete globalThis[PLOTLY]; throw e; });
  return ask().catch(ask);        // the figure that asked first may have been closed
}

function decoded(value) {
  if (value?.bdata === undefined) return value;
  return new TYPED[value.dtype](Uint8Array.from(atob(value.bdata), c => c.charCodeAt(0)).buffer);
}

function put(object, path, value) {       // path such as marker.color or shapes[0].x0
  const keys = path.replace(/\[(\d+)\]/g, '.$1').split('.'), last = keys.pop();
  for (const k of keys) object = object[k] ??= {};
  object[last] = value;
}

export default () => {
  const views = new Set();
  let figure, known, loaded = new Promise(done => known = done);

  function change({traces, layout}) {
    for (const properties of Object.values(traces))
      for (const k in properties) properties[k] = decoded(properties[k]);
    for (const [i, properties] of Object.entries(traces))
      for (const k in properties) put(figure.data[i], k, properties[k]);
    for (const k in layout) put(figure.layout, k, layout[k]);
    const index = Object.keys(traces), keys = new Set(index.flatMap(i => Object.keys(traces[i])));
    // undefined where a trace stays as it was
    const styles = Object.fromEntries([...keys].map(k => [k, index.map(i => traces[i][k])]));
    views.forEach(v => v.change(styles, layout, index.map(Number)));
  }

  return {
    initialize({model}) {
      follow(model, state => { figure = state.figure; known(); views.forEach(v => v.draw()); });
      model.on('msg:custom', content => { if (content.change && figure) change(content.change); });
    },

    render({model, el}) {
      const at = make(el, 'div');
      let Plotly, view;
      // when a pane is opened or closed
      const sized = new ResizeObserver(() => view && at.clientWidth && Plotly.Plots.resize(at));
      (async () => {
        Plotly = await plotly(model);
        await loaded;
        const draw = () => {
          const {data, layout} = structuredClone(figure);
          return Plotly.react(at, data, layout, figure.config);
        };
        await draw();
        at.on('plotly_click', e => model.send({click: [e.points[0].curveNumber, e.points[0].pointNumber]}));
        at.on('plotly_relayout', e => {
          if (!Object.keys(e).some(k => k.startsWith('shapes['))) return;
          model.send({shapes: at.layout.shapes.map(({x0, y0, x1, y1}) => ({x0, y0, x1, y1}))});
        });
        views.add(view = {draw, change: (styles, layout, index) => Plotly.update(at, styles, layout, index)});
        sized.observe(at);
      })();
      return () => { views.delete(view); sized.disconnect(); Plotly?.purge(at); };
    },
  };
};
