/* Keeps the DOM events of a page, for the test to look at. */
window.heard = [];
document.addEventListener("DOMContentLoaded", function () {
  for (const name of ["pg:live.parcel", "pg:state", "pg:swap"]) {
    document.body.addEventListener(name, (event) => window.heard.push([name, event.detail]));
  }
});
