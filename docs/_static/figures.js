// Draws the figures of a page when they come near the window; where that fails, their PNG stays.
(() => {
  const webgl = document.createElement('canvas').getContext('webgl');
  const draw = (div) => {
    const still = div.querySelector('noscript')?.textContent ?? '';
    const figure = JSON.parse(div.nextElementSibling.textContent);
    div.replaceChildren();
    if (!webgl) figure.data.forEach((trace) => { trace.type = trace.type?.replace(/^(scatter(polar)?)gl$/, '$1'); });
    const config = {
      responsive: true, displaylogo: false, displayModeBar: 'hover', ...figure.config, showSendToCloud: false,
    };
    Promise.resolve()
      .then(() => Plotly.newPlot(div, figure.data, figure.layout, config))
      .then(() => { div.dataset.drawn = 'true'; })
      .catch((e) => { div.innerHTML = still; div.style.height = 'auto'; console.error(e); });
  };
  const near = new IntersectionObserver((entries) => entries.forEach((e) => {
    if (e.isIntersecting) { near.unobserve(e.target); draw(e.target); }
  }), {rootMargin: '800px'});
  const all = [...document.querySelectorAll('.figure-to-draw')];
  all.forEach((div) => near.observe(div));
  addEventListener('beforeprint', () => all.forEach((div) => {
    if (!div.dataset.drawn) { near.unobserve(div); draw(div); }
  }));
})();
