"use strict";
// Goes into the report, which is shut off from the page around it (sandbox): tells that page how high it is, and when it is drawn.
(() => {
  const root = document.documentElement;
  const tell = () =>
    parent.postMessage({ height: Math.ceil(root.getBoundingClientRect().height), ready: root.dataset.ready === "true" }, "*");
  new ResizeObserver(tell).observe(root);
  new MutationObserver(tell).observe(root, { attributes: true, attributeFilter: ["data-ready"] });
  tell();
})();
