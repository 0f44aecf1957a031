"use strict";
// Draws each chart when it comes into sight. Colors are the style sheet's, so dark mode needs nothing more.
(() => {
  const ink = "var(--faint)";
  const config = {
    background: null,
    font: 'system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif',
    view: { stroke: null },
    axis: {
      labelColor: ink, titleColor: ink, domainColor: ink, tickColor: ink, gridColor: "var(--rule)",
      labelFontSize: 12, titleFontSize: 12, titleFontWeight: "normal", labelFlush: true,
    },
    legend: { labelColor: ink, labelFontSize: 12, labelLimit: 260, symbolType: "stroke", symbolStrokeWidth: 3 },
  };
  const inflate = async () => {
    const packed = document.getElementById("chart-library").textContent;
    const bytes = Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = `(() => {${await new Response(stream).text()}})();`;
    document.head.append(script);
  };
  let library;
  const draw = async (place) => {
    const source = place.querySelector("script");
    if (!source) return; // drawn, or about to be
    source.remove();
    library ??= inflate();
    await library;
    const spec = JSON.parse(source.textContent);
    await vegaEmbed(place, { ...spec, config }, { actions: false, renderer: "svg", ast: true });
  };
  const seen = new IntersectionObserver(
    (entries) => entries.filter((one) => one.isIntersecting).forEach((one) => draw(one.target)),
    { rootMargin: "300px" },
  );
  const places = [...document.querySelectorAll(".chart")];
  places.forEach((place) => seen.observe(place));
  addEventListener("beforeprint", () => places.forEach(draw));
})();
