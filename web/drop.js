/** Image files that are dropped or pasted anywhere on the page. */

const NO_FILE = "No image file was dropped or pasted. Save the image first, then choose or drop the file.";

/**
 * @param {Element} dropZone is highlighted while something is dragged over the page.
 * @param {(file: File, name: string, note: string) => void} onFile
 * @param {(message: string) => void} onNoFile is called where what was dropped or pasted is not a file.
 */
export function listenForFiles(dropZone, onFile, onNoFile) {
  // On the whole window: the browser would open a file dropped beside the zone in place of the page.
  addEventListener("dragover", (event) => {
    event.preventDefault();
    dropZone.classList.add("drag-over");
  });
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) dropZone.classList.remove("drag-over");
  });
  addEventListener("drop", (event) => {
    event.preventDefault();
    dropZone.classList.remove("drag-over");
    takeFirst(event.dataTransfer?.files);
  });
  addEventListener("paste", (event) => takeFirst(event.clipboardData?.files));

  function takeFirst(files) {
    if (!files?.length) {
      onNoFile(NO_FILE);
      return;
    }
    const note = files.length > 1 ? `Only the first of ${files.length} files is used.` : "";
    onFile(files[0], files[0].name || "pasted image", note);
  }
}
